"""An artifact of ONNX models beside the CPU target's, in ``bench`` and ``eval``, of other types, and on a GPU."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.artifact import Artifact, StepTime, StepTimes
from dspark_compiler.cli import main
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.checkpoint import write_heads
from dspark_compiler.runtime import ort_provider
from dspark_compiler.runtime.engine import Engine
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.ort_device import GpuTensor
from dspark_compiler.runtime.ort_provider import Provider, choose_provider
from tests.bench import tiny
from tests.passes.test_attach_decode_heads import make_heads
from tests.tiny_models import TINY

pytestmark = pytest.mark.xdist_group("tiny-export")

_SIZES = {"max_seq_len": 96, "prefill_widths": (8,), "verify_width": 4, "check": False}
# Drafting always seems to pay, or tiny models would park at once.
_TIMES = StepTimes(1.0, 0.0, (StepTime(2, 1.01), StepTime(4, 1.02)))


def _compiled(source: Path, folder: Path, target: str, **options: Any) -> Artifact:
    return compile_model(str(source), CompileConfig(target=target, output=folder / target, **_SIZES | options))


def _tokens(artifact: Artifact) -> list[tuple[int, ...]]:
    """Of two prompts, greedily and by drafts."""
    assert artifact.manifest.heads is not None
    heads = dataclasses.replace(artifact.manifest.heads, times=_TIMES)
    artifact = Artifact(artifact.path, dataclasses.replace(artifact.manifest, heads=heads))
    prompts = [np.random.default_rng(n).permutation(np.arange(3, 127))[:n].tolist() for n in (33, 6)]
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    engine = Engine(artifact, paced=False)
    found = [engine.complete([prompt], params)[0] for prompt in prompts]
    assert max(done.accepted_length or 0 for done in found) >= 1
    return [tuple(done.tokens) for done in found]


# Without heads: test_onnxruntime_artifact.py; other policies: lowering/onnx/test_eviction.py.
@pytest.mark.parametrize("options", [{}, {"kv_budget": 32, "kv_policy": "snapkv"}], ids=["whole", "pruned"])
def test_greedy_tokens_are_the_cpu_target_s(options: dict[str, Any], tmp_path: Path) -> None:
    model, source = TINY["qwen3"](), tmp_path / "source"
    model.save_pretrained(source)
    write_heads(tmp_path / "heads", make_heads(model, "vanilla", head_dim=16))
    options = options | {"heads": tmp_path / "heads"}
    mine, cpu = (_compiled(source, tmp_path, target, **options) for target in ("onnxruntime", "cpu"))
    assert _tokens(mine) == _tokens(cpu)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("contract")
    return _compiled(tiny.source(), folder, "onnxruntime", max_seq_len=tiny.CONTEXT)


def _dspark(*args: object) -> None:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output


def test_bench_beside_a_plain_export(artifact: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    lengths = ("--prompt-len", 9, "--new-tokens", 12, "--repeats", 2)
    _dspark("bench", artifact.path, "--against", "onnxruntime", "--model", tiny.exported(), *lengths, "--json", file)
    data = json.loads(file.read_text())
    assert (data["target"], data["tokens_identical"], data["limit"]) == ("onnxruntime", True, "all cores read")
    mine, plain = data["runs"]
    assert mine["options"]["provider"] == plain["options"]["provider"] == "CPUExecutionProvider"
    assert mine["options"]["session.disable_prepacking"] == "0"
    assert data["speedup"].keys() == {"onnxruntime"}


def test_eval(artifact: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    tasks = ("--task", "ppl", "--task", "agreement", "--limit", "2")
    _dspark("eval", artifact.path, *tasks, "--json", file)
    text = file.read_text()
    assert '"ppl"' in text
    assert '"agreement": 1.0' in text


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"quantize": "int8"}, {"quantize": "int4-g128"}])
def test_weights_of_fewer_bits(options: dict[str, Any], artifact: Artifact, tmp_path: Path) -> None:
    small = _compiled(tiny.source(), tmp_path, "onnxruntime", max_seq_len=tiny.CONTEXT, **options)
    sizes = [
        sum(file.size for name, file in made.manifest.files.items() if name.endswith("safetensors"))
        for made in (small, artifact)
    ]
    assert sizes[0] < sizes[1]
    kept = small.manifest.quantization
    assert (None if kept is None else kept.scheme) == options.get("quantize")
    assert small.manifest.kv.dtype == options.get("dtype", "float32")
    found, wanted = (Executor(made).prefill(0, [5, 6, 7, 8, 9, 10, 11, 12, 13], 0, 0) for made in (small, artifact))
    assert np.corrcoef(found, wanted)[0, 1] > 0.9  # how close each is, is asked of its models


def _driver(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """As if there were so many GPUs, and an ONNX Runtime for them."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort_provider, "find_driver", lambda: SimpleNamespace(gpus=("a GPU",) * gpus))


def _as(artifact: Artifact, device: int = 0, **changed: Any) -> Artifact:
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, **changed), device=device)


def test_float16_runs_on_a_gpu_if_there_is_one(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    half = _as(artifact, dtype="float16")
    _driver(monkeypatch, 0)
    assert choose_provider(half) == Provider()
    _driver(monkeypatch, 2)
    assert choose_provider(artifact) == Provider()
    chosen = choose_provider(_as(half, 1))
    assert chosen.order == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    with pytest.raises(InputError, match="--device 2: there is none of this number; ONNX Runtime has GPUs 0 to 1"):
        choose_provider(_as(half, 2))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert choose_provider(half) == Provider()


def test_memory_of_a_gpu_can_be_sessions_weights() -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    tensor = GpuTensor(array, Provider())  # the host's stands in for a GPU's
    onnxruntime.SessionOptions().add_initializer("weight", tensor.value)  # refuses memory that is not ours
    np.testing.assert_array_equal(tensor.value.numpy(), array)
