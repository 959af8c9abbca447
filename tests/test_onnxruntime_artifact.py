"""Artifacts whose entry points are ONNX models: eager's tokens through our runtime, and through a loop of anybody's."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from dspark_compiler import CompileConfig, SamplingParams, load
from dspark_compiler.artifact import Artifact, StepTime, StepTimes
from dspark_compiler.cli import compile_main
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.engine import Engine
from dspark_compiler.runtime.executor import Executor
from tests.tiny_models import TINY

_SIZES = {"max_seq_len": 64, "prefill_widths": (8, 16), "verify_width": 4}
_NEW = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("source") / "tiny-qwen3"
    TINY["qwen3"]().save_pretrained(folder)
    return str(folder)


def _compiled(source: str, folder: Path, **options: Any) -> Artifact:
    config = {**_SIZES, "target": "onnxruntime", "output": folder / "a.dspark", "check": False} | options
    return compile_model(source, CompileConfig(**config))


@pytest.fixture(scope="module")
def artifact(source: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _compiled(source, tmp_path_factory.mktemp("plain"), emit="onnx", check=True)


def _prompt(length: int) -> list[int]:
    return torch.randint(3, 100, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def _eager(prompt: list[int], new_tokens: int = _NEW) -> list[int]:
    options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return TINY["qwen3"]().generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()


def test_what_it_holds(artifact: Artifact) -> None:
    models = {name for name in artifact.manifest.files if name.endswith(".onnx")}
    assert models == {"prefill_8.onnx", "prefill_16.onnx", "decode.onnx", "verify_4.onnx"}
    assert not any("scratch" in state for state in artifact.manifest.states)
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["check"]["agreement"] == 1.0
    decode = onnx.load(artifact.path / "decode.onnx", load_external_data=False)
    kinds = [node.op_type for node in decode.graph.node]
    assert kinds.count("GroupQueryAttention") == 2
    assert kinds.count("Transpose") == 0
    weights = [tensor for tensor in decode.graph.initializer if tensor.external_data]
    assert {entry.value for tensor in weights for entry in tensor.external_data if entry.key == "location"} == {
        "params/00001.safetensors"
    }


def test_tokens_are_eager_s(artifact: Artifact) -> None:
    params = SamplingParams(max_new_tokens=_NEW, ignore_eos=True)
    engine = load(artifact.path)
    for length in (33, 6):
        assert list(engine.complete([_prompt(length)], params)[0].tokens) == _eager(_prompt(length))


def test_caches_are_written_where_they_lie(artifact: Artifact) -> None:
    executor = Executor(artifact)
    executor.prefill(0, _prompt(9), 0, 0)
    states = executor.calls["decode"]._shared  # type: ignore[attr-defined]
    before = {name: states[name].now for name in artifact.manifest.states}
    executor.decode([5], [9], [9], [1])
    for name, tensor in before.items():
        assert states[name].now is tensor
        assert states[name].spare is None
        assert np.abs(tensor.array[0, :, 9]).min() > 0


def test_a_program_of_thirty_lines_drives_it(artifact: Artifact, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    prompt = _prompt(21)
    program = program.replace('"my-model.dspark"', repr(str(artifact.path))).replace("[1, 2, 3]", repr(prompt), 1)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout) == _eager(prompt, 16)


def test_running_needs_no_torch(artifact: Artifact) -> None:
    program = f"""
import sys
from dspark_compiler.runtime.engine import load
load({str(artifact.path)!r}).complete([[5, 6, 7]])
print([name for name in ("torch", "transformers", "onnx", "tvm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 3},
        {"kv_budget": 24, "max_seq_len": 90},
        {"kv_budget": 24, "kv_policy": "tova", "max_seq_len": 90, "max_batch": 3},
    ],
    ids=["batch", "pruned", "pruned-batch"],
)
def test_rounds_give_the_tokens_of_plain_decoding(source: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = _compiled(source, tmp_path, heads=Path("ngram"), **options)
    heads = made.manifest.heads
    assert heads is not None
    times = StepTimes(1.0, 0.0, (StepTime(2, 1.01), StepTime(4, 1.02)))  # drafting seems to pay
    manifest = dataclasses.replace(made.manifest, heads=dataclasses.replace(heads, times=times))
    drafting, plain = Engine(dataclasses.replace(made, manifest=manifest), paced=False), Engine(made, heads=False)
    prompts = [[1, 2, 3] * 6, [7], [30, 31, 32, 33, 34, 30, 31]][: made.manifest.max_batch]
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    found, expected = drafting.complete(prompts, params), plain.complete(prompts, params)
    assert [c.tokens for c in found] == [c.tokens for c in expected]
    assert max(c.accepted_length or 0 for c in found) > 1
    assert [c.kv_slots for c in found] == [c.kv_slots for c in expected]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantize": "fp8"}, "--quantize fp8: ONNX has products with integer codes only; take int8 or int4-g128"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: with --target onnxruntime not one of float32, float16"),
        ({"kv_dtype": "int8"}, "--kv-dtype int8: with --target onnxruntime not one of float32"),
        ({"arch": "native"}, "--arch native: not with --target onnxruntime yet"),
        ({"tune_trials": 3}, "--tune-trials 3: nothing is measured for --target onnxruntime"),
    ],
)
def test_what_does_not_apply_is_refused_before_any_work(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompileConfig(target="onnxruntime", **given)


def test_another_target_does_not_emit_onnx() -> None:
    result = CliRunner().invoke(compile_main, ["model", "--emit", "onnx", "--target", "cpu"])
    assert result.exit_code == 2
    assert "--emit onnx: ONNX models are what --target onnxruntime is made of, not --target cpu" in result.output


def test_without_onnx_runtime_it_says_what_to_install(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="ONNX Runtime, which is not installed; pip install onnxruntime"):
        Artifact.open(artifact.path)


def test_a_device_that_is_not_there(artifact: Artifact) -> None:
    with pytest.raises(InputError, match=r"--device 1: .* ONNX Runtime's processor, which is one device, 0"):
        load(artifact.path, device=1)


def test_a_model_that_is_damaged_is_named(artifact: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact.path, tmp_path / "b.dspark"))
    data = (folder / "decode.onnx").read_bytes()
    (folder / "decode.onnx").write_bytes(bytes(len(data)))
    with pytest.raises(ArtifactError, match=r"decode\.onnx: ONNX Runtime .* cannot use it"):
        load(folder, verify=False).complete([[5, 6, 7]], SamplingParams(max_new_tokens=4))
