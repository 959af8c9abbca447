"""Every kernel of tiny models is code for every architecture, and takes no more of a GPU than it has."""

from pathlib import Path

import pytest

from dspark_compiler.config import DType
from dspark_compiler.graph.program import Program
from dspark_compiler.schedules.rocm.architectures import ARCHITECTURES
from tests.rocm.models import kernels_of, program_of
from tests.rocm.tools import CodeObject, need_rocm


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Program:
    need_rocm()
    return program_of("qwen3", "bfloat16", tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_for_every_architecture(
    qwen3: Program, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kernels_of(qwen3, arch, "bfloat16", tmp_path / "model.so", monkeypatch)
    check(made, arch)
    (wide,) = {name for name in made.kernels if name.startswith("linear_20x32x128")}
    assert any(line.startswith(("v_mfma", "v_wmma")) for line in made.instructions(tmp_path, wide))


@pytest.mark.parametrize(("name", "dtype", "arch"), [("mixtral", "float16", "gfx1201")])
def test_other_models_and_types(
    name: str, dtype: DType, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_rocm()
    program = program_of(name, dtype, tmp_path / "source")
    check(kernels_of(program, arch, dtype, tmp_path / "model.so", monkeypatch), arch)


def check(made: CodeObject, arch: str) -> None:
    """Registers, local memory and threads of every kernel; arguments were compared when it was packed."""
    assert made.description["arch"] == arch
    assert {kernel["name"] for kernel in made.description["kernels"]} == set(made.kernels)
    assert len(made.kernels) > 10
    for name, info in made.kernels.items():
        assert (info.vector_spills, info.scalar_spills, info.scratch_bytes) == (0, 0, 0), name
        assert info.wave == ARCHITECTURES[arch].wave, name
        assert info.most_threads == 256, name
        assert info.vector_registers <= 256, name
        assert info.shared_bytes <= 64 << 10, name
