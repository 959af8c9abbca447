"""An artifact for Vulkan devices, from a checkpoint on disk to tokens: eager's, and verify's bits are decode's."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.artifact import Artifact
from dspark_compiler.backends import create_backend
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.engine import load
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.schedules.simt import awaited, rows
from dspark_compiler.schedules.tir import Buffer, Expr, when
from tests.tiny_models import TINY
from tests.vulkan.device import environment, need_vulkan
from tests.vulkan.drivers import failing_loader, two_devices

_NEW = 24


def _compiled(name: str, folder: Path, **options: Any) -> Path:
    model = TINY[name]()
    model.save_pretrained(folder / "source")
    sizes = {"max_seq_len": 64, "prefill_widths": (8, 20), "verify_width": 4, "max_batch": 2} | options
    config = CompileConfig(target="vulkan", output=folder / "model.dspark", check=False, **sizes)
    return compile_model(str(folder / "source"), config).path


def _prompt(length: int) -> list[int]:
    return torch.randint(3, 100, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_vulkan()
    return _compiled("qwen3", tmp_path_factory.mktemp("vulkan"), dtype="float32")


def test_what_an_artifact_holds(artifact: Path) -> None:
    manifest = Artifact.open(artifact, runnable=False).manifest
    assert (manifest.target.kind, manifest.target.arch, manifest.dtype) == ("vulkan", "generic", "float32")
    assert {"prefill_8", "prefill_20", "decode", "verify_4", "commit"} <= set(manifest.entry_points)
    libraries = {Path(name).name for name in manifest.files if name.startswith("lib/")}
    assert {"model.so", "libtvm_runtime.so"} < libraries
    assert any(name.startswith("libdspark_vulkan") for name in libraries)


def test_tokens_are_those_of_eager(artifact: Path) -> None:
    model, prompts = TINY["qwen3"](), [_prompt(33), _prompt(6)]
    params = SamplingParams(max_new_tokens=_NEW, ignore_eos=True)
    for prompt, completion in zip(prompts, load(artifact).complete(prompts, params), strict=True):
        options = {"max_new_tokens": _NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        eager = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert list(completion.tokens) == eager.tolist()


def test_verify_has_the_bits_of_decode(artifact: Path) -> None:
    executor, tokens = Executor(Artifact.open(artifact)), np.array([_prompt(4), _prompt(4)])
    executor.prefill(0, _prompt(33), 0, 0)
    length = np.array([33, 0])
    verified = executor.verify(tokens, np.arange(4) + length[:, None], length)[0].copy()
    for i in range(4):
        one = executor.decode(tokens[:, i], length + i, length + i, np.array([1, 0]))[0]
        np.testing.assert_array_equal(one, verified[i])


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float16"), ("mixtral", "bfloat16")])
def test_weights_of_two_bytes(name: str, dtype: str, tmp_path: Path) -> None:
    need_vulkan()
    executor = Executor(Artifact.open(_compiled(name, tmp_path, dtype=dtype, prefill_widths=(20,))))
    prompt = _prompt(30)
    with torch.no_grad():
        wanted = TINY[name]()(torch.tensor([prompt])).logits[0, -1].numpy()
    found = executor.prefill(0, prompt, 0, 0)
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)


def test_quantized_weights_are_those_of_the_cpu(tmp_path: Path) -> None:
    need_vulkan()
    prompt, logits = _prompt(30), {}
    TINY["llama"]().save_pretrained(tmp_path / "source")
    sizes = {"max_seq_len": 64, "prefill_widths": (20,), "verify_width": 2, "quantize": "int4-g128", "dtype": "float32"}
    for target in ("cpu", "vulkan"):
        config = CompileConfig(target=target, output=tmp_path / f"{target}.dspark", check=False, **sizes)
        executor = Executor(compile_model(str(tmp_path / "source"), config))
        logits[target] = [executor.prefill(0, prompt, 0, 0).copy(), executor.decode([5], [30], [30], [1])[0].copy()]
    np.testing.assert_allclose(np.ravel(logits["vulkan"]), np.ravel(logits["cpu"]), atol=5e-5)


def test_an_architecture_is_not_asked_for() -> None:
    with pytest.raises(InputError, match="--arch sm_90a: the vulkan target compiles for all devices alike"):
        create_backend("vulkan", "sm_90a")


def _generate(artifact: Path, folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``dspark generate`` in a process of its own."""
    (folder / "ids.json").write_text(json.dumps(_prompt(6)))
    command = ["generate", str(artifact), "--prompt-ids", str(folder / "ids.json"), "--max-new-tokens", str(_NEW)]
    command += ["--json", *options]
    return subprocess.run(
        [sys.executable, "-m", "dspark_compiler", *command],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_second_device_gives_the_same_tokens_and_a_third_is_not_there(artifact: Path, tmp_path: Path) -> None:
    params = SamplingParams(max_new_tokens=_NEW)
    (expected,) = load(artifact).complete([_prompt(6)], params)
    done = _generate(artifact, tmp_path, "--device", "1", **two_devices(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["tokens"] == list(expected.tokens)
    done = _generate(artifact, tmp_path, "--device", "2", **two_devices(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: --device 2: there is none of this number; this machine has 0: .*, 1: .*\n", done.stderr
    )


def test_launches_that_overlap_give_the_same_tokens(tmp_path: Path) -> None:
    need_vulkan()
    path = _compiled("qwen3", tmp_path, dtype="float16", max_batch=1, prefill_widths=(8,))
    done = [_generate(path, tmp_path, DSPARK_VULKAN_OVERLAP=overlap) for overlap in "01"]
    assert [(each.returncode, each.stderr) for each in done] == [(0, ""), (0, "")]
    behind_barriers, overlapping = (json.loads(each.stdout)["tokens"] for each in done)
    assert overlapping == behind_barriers


def _forget_kernels() -> None:
    """Templates make their kernels anew, whatever they made once."""
    loaded = [module for name, module in sys.modules.items() if name.startswith("dspark_compiler.schedules.")]
    for template in (value for module in loaded for value in vars(module).values() if hasattr(value, "cache_clear")):
        template.cache_clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled asks a few times for a number, not for seconds."""
    _forget_kernels()
    monkeypatch.setattr(awaited, "_MOST_TIMES", 8)
    yield
    _forget_kernels()


@pytest.mark.usefixtures("impatient")
def test_a_wait_that_nobody_answers_ends_a_generation_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_vulkan()
    publish = rows.publish

    def publish_all_but_one(buffer: Buffer, index: list[Expr], value: Expr) -> None:
        with when(index[-1] != 7):
            publish(buffer, index, value)

    # The first product of a step waits for all numbers of an embedding.
    monkeypatch.setattr(rows, "publish", publish_all_but_one)
    path = _compiled("qwen3", tmp_path, dtype="float16", max_batch=1, prefill_widths=(8,), verify_width=1)
    done = _generate(path, tmp_path, DSPARK_VULKAN_OVERLAP="1")
    assert (done.returncode, done.stdout) == (2, "")
    wanted = r"error: Vulkan device 0 \(.+\): a kernel waited in vain for .+; set DSPARK_VULKAN_OVERLAP=0\n"
    assert re.fullmatch(wanted, done.stderr)


def test_a_device_lost_in_the_middle_of_a_generation_is_one_line(artifact: Path, tmp_path: Path) -> None:
    variables = failing_loader(tmp_path)
    (tmp_path / "lost").write_text("20")
    done = _generate(artifact, tmp_path, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    wanted = (
        r"error: Vulkan device 0 \(.+\): .*the device as lost \(VK_ERROR_DEVICE_LOST\), with all that was on it; .*\n"
    )
    assert re.fullmatch(wanted, done.stderr)
