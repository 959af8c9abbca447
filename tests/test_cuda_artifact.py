"""Compiling for Nvidia GPUs needs none; an artifact says what it needs, and on a GPU it computes what it should."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_compiler import CompileConfig, driver
from dspark_compiler.artifact import Artifact
from dspark_compiler.artifact.nvidia import find_driver
from dspark_compiler.backends import create_backend
from dspark_compiler.backends.cuda import CudaBackend
from dspark_compiler.commands.tune import tune_command
from dspark_compiler.driver import compile_model, tune_model
from dspark_compiler.errors import ArtifactError, InputError, LoweringError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.schedules.bench import Run
from dspark_compiler.schedules.choice import choose_schedule
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule, default_stream_schedule
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from tests.gpu import ARCH, compiled, need_compiler, need_gpu, relative_error
from tests.schedules.fake_bench import FakeBench
from tests.tiny_models import TINY

_ROUNDED = 0.03  # relative error of logits that operands of 8 significant bits leave
# One of each kind: plain, head norms, soft caps and windows, biases, learned positions, partial rotation, experts.
_FAMILIES = ("llama", "qwen3", "gemma2", "qwen2", "gpt2", "phi3", "mixtral", "gpt_neox", "gpt_oss")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_compiler()
    return compiled("llama", tmp_path_factory.mktemp("cuda"), prefill_widths=(40,))


def test_an_artifact_is_compiled_without_a_gpu(artifact: Path) -> None:
    manifest = Artifact.open(artifact, runnable=False).manifest
    assert (manifest.target.kind, manifest.target.arch, manifest.dtype) == ("cuda", ARCH, "bfloat16")
    assert {"prefill_40", "decode", "verify_4", "commit", "accept_1"} == set(manifest.entry_points)
    assert manifest.kv.dtype == "bfloat16"
    assert manifest.states["k_cache.0"].dtype == "bfloat16"
    libraries = {Path(name).name for name in manifest.files if name.startswith("lib/")}
    assert {"model.so", "libtvm_runtime.so", "libtvm_runtime_cuda.so"} < libraries
    assert any(name.startswith("libcudart.so.13") for name in libraries)


def test_the_library_holds_code_and_not_its_source(artifact: Path) -> None:
    library = (artifact / "lib" / "model.so").read_bytes()
    assert library.count(b"\x7fELF") == 2, "the library itself, and the GPU's code in it"
    assert b"__global__" not in library


def test_without_a_gpu_one_line_says_so(artifact: Path) -> None:
    if find_driver() is not None:
        pytest.skip("this machine has Nvidia's driver")
    with pytest.raises(ArtifactError, match=r"compiled for Nvidia GPUs \(sm_90a\), this machine has no driver"):
        Artifact.open(artifact)


@pytest.mark.parametrize("arch", ["sm_80", "gfx942", "90a"])
def test_architectures_that_cannot_be(arch: str) -> None:
    need_compiler()
    with pytest.raises(InputError, match=f"--arch {arch}: give one from sm_"):
        create_backend("cuda", arch)


def test_types_a_gpu_does_not_compute_with() -> None:
    with pytest.raises(InputError, match="--dtype float32: with --target cuda not one of float16, bfloat16"):
        CompileConfig(target="cuda", dtype="float32")
    with pytest.raises(InputError, match="--kv-dtype float32: with --target cuda not one of bfloat16, int8, float8"):
        CompileConfig(target="cuda", kv_dtype="float32")


def test_rows_that_cannot_be_read_in_pieces_are_refused(tmp_path: Path) -> None:
    need_compiler()
    config = LlamaConfig(**TINY["llama"]().config.to_dict() | {"intermediate_size": 44})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    with pytest.raises(LoweringError, match=r"down_proj.weight multiplies rows of 44 elements"):
        compile_model(str(tmp_path / "source"), CompileConfig(target="cuda", arch=ARCH, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_tuning_needs_the_gpu_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiler()
    monkeypatch.setattr("dspark_compiler.backends.cuda.find_driver", lambda: None)
    done = CliRunner().invoke(tune_command, ["nowhere", "--trials", "8", "--target", "cuda", "--arch", "sm_90a"])
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert "tuning measures on this machine, which has nothing that runs sm_90a code" in line


def test_what_tuning_finds_is_what_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiler()
    TINY["llama"]().save_pretrained(tmp_path / "source")
    monkeypatch.setenv("DSPARK_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(CudaBackend, "runs_here", lambda _: True)
    few = StreamSchedule(1, 1, 4)
    bench = FakeBench({few: lambda sample: Run(sample.expected.astype(sample.dtype), 1.0)})
    monkeypatch.setattr(FragmentLinears, "candidates", _candidates(few))
    monkeypatch.setattr(driver, "open_bench", lambda _: bench)
    config = CompileConfig(target="cuda", arch=ARCH, max_seq_len=64, prefill_widths=(8,), tune_trials=100)
    measured = tune_model(str(tmp_path / "source"), config)
    assert measured == len(bench.seen) > 4
    assert tune_model(str(tmp_path / "source"), config) == 0
    records = Records(ARCH, [], tmp_path / "records")
    for rows in (1, 8):
        work = LinearWorkload(rows, 64, 32, "bfloat16")
        assert records.measured(work)[few] == 1.0
        assert choose_schedule(work, FragmentLinears(ARCH), records) == few


def _candidates(few: StreamSchedule) -> Callable[[FragmentLinears, LinearWorkload], list[StreamSchedule]]:
    """The default and another."""
    return lambda _, work: [default_stream_schedule(work), few]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", _FAMILIES)
def test_a_family_on_a_gpu(name: str, dtype: str, tmp_path: Path) -> None:
    need_gpu()
    executor = Executor(Artifact.open(compiled(name, tmp_path, dtype=dtype)))
    ids = torch.randint(3, 100, (50,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = TINY[name]()(ids[None]).logits[0].numpy()
    assert executor.device.obstacle is None
    assert relative_error(executor.prefill(0, ids[:47].tolist(), 0, 0), wanted[46]) < _ROUNDED
    tokens = np.zeros((2, 4), np.int64)
    tokens[0] = ids[[47, 48, 49, 49]]
    length, count = np.array([47, 0]), np.array([1, 0])
    together = executor.verify(tokens, np.arange(4) + length[:, None], length)[0].copy()
    assert relative_error(together[:3], wanted[47:50]) < _ROUNDED
    for i in range(3):
        one = executor.decode(tokens[:, i], length + i, length + i, count)[0]
        np.testing.assert_array_equal(one, together[i], err_msg="decode and verify agree bit for bit")
