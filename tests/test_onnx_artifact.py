"""From an ``.onnx`` file on disk to tokens out of the torch-free runtime."""

import json
from pathlib import Path

import numpy as np
import pytest

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.artifact import Artifact
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.source import open_source
from dspark_compiler.runtime.engine import load
from dspark_compiler.viewer.record import RECORD, unpack
from tests import onnx_graphs
from tests.frontend.onnx.running import read, reference
from tests.onnx_graphs import HIDDEN, LAYERS, POSITIONS, VOCAB

_PROMPT = [5, 17, 3, 42, 8, 8, 29]
_NEW = 16


def compiled(path: Path, output: Path, **options: object) -> Artifact:
    config = CompileConfig(output=output, max_seq_len=40, prefill_widths=(8,), verify_width=4, **options)  # type: ignore[arg-type]
    return compile_model(str(path), config)


def test_greedy_tokens_are_onnx_runtimes(tmp_path: Path) -> None:
    path = onnx_graphs.build("written-out-window", tmp_path / "model.onnx")
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"eos_token_id": [2], "context_length": 48}}))
    said: list[str] = []
    config = CompileConfig(output=tmp_path / "out", max_seq_len=40, max_batch=2, prefill_widths=(8,), verify_width=4)
    artifact = compile_model(str(tmp_path), config, progress=lambda stage, *_: said.append(stage))
    model = artifact.manifest.model
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (VOCAB, HIDDEN, LAYERS)
    assert (model.max_positions, model.eos_token_ids) == (48, (2,))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["check"]["agreement"] == 1
    params = SamplingParams(max_new_tokens=_NEW, ignore_eos=True)
    tokens = list(load(tmp_path / "out").complete([_PROMPT], params)[0].tokens)
    logits = reference(path, read(path), _PROMPT + tokens[:-1])[len(_PROMPT) - 1 :]
    assert tokens == logits.argmax(-1).tolist()
    assert len(set(tokens)) > 3
    assert "check" in said


def test_codes_are_kept(tmp_path: Path) -> None:
    path = onnx_graphs.build("four-bits-zeros", tmp_path / "model.onnx")
    artifact = compiled(path, tmp_path / "out", quantize="keep")
    assert artifact.manifest.quantization is not None
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (kept,) = (p["matched"] for p in report["passes"] if p["name"] == "keep_quantized")
    assert "int4-g16-offsets" in kept
    data = artifact.read_bytes(RECORD)
    assert data is not None
    steps = unpack(data, RECORD)["steps"]
    assert [step["name"] for step in steps] == ["capture", *(one["name"] for one in report["passes"])]
    (codes,) = (step["matched"] for step in steps if step["name"] == "keep_quantized")
    assert sum(len(match["where"]) for match in codes) == sum(artifact.manifest.quantization.weights.values())


def test_what_a_file_does_not_say_is_assumed_aloud(tmp_path: Path) -> None:
    source = open_source(str(onnx_graphs.build("written-out", tmp_path / "model.onnx")))
    assert source.max_positions == 4096
    assert [remark.split(":")[0][:9] for remark in source.remarks] == ["model.onn", "no config"]
    tabled = open_source(str(onnx_graphs.build("grouped", tmp_path / "model.onnx")))
    assert tabled.max_positions == POSITIONS


def test_a_config_of_another_model(tmp_path: Path) -> None:
    path = onnx_graphs.build("grouped", tmp_path / "model.onnx")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB + 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"vocab_size is {VOCAB + 1}, the graph's is {VOCAB}"):
        open_source(str(path))


def test_half_precision_files_are_judged_by_a_budget(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx_graphs.write("grouped")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, str(tmp_path / "model.onnx"))
    loaded = open_source(str(tmp_path / "model.onnx")).load_for_compile()
    program = loaded.capture(CompileConfig(max_seq_len=16, prefill_widths=(4,), verify_width=2))
    assert {str(tensor.dtype) for tensor in program.params.values()} == {"torch.float32"}
    from dspark_compiler.compare.reference import reference_of

    assert not reference_of(loaded).exact
