"""The target where none is named: a GPU that works, with its compiler, or the processor; and why."""

import pytest

from dspark_compiler.artifact.nvidia import Driver, Gpu
from dspark_compiler.backends import cuda_toolkit
from dspark_compiler.machine import best_target as module
from dspark_compiler.machine.best_target import best_target

H200, A100 = Gpu("NVIDIA H200", (9, 0), 1 << 37), Gpu("NVIDIA A100", (8, 0), 1 << 36)


@pytest.mark.parametrize(
    ("driver", "compiler", "target", "reason"),
    [
        (None, "nvcc", "cpu", "no GPU's driver is here"),
        (Driver((12, 8), (H200,)), "nvcc", "cpu", "Nvidia's driver here is for CUDA 12.8, not 13.0"),
        (Driver((13, 0), (), "no device"), "nvcc", "cpu", "Nvidia's driver offers no GPU (no device)"),
        (Driver((13, 1), (A100, H200)), "nvcc", "cpu", "the NVIDIA A100 here is older than what --target cuda is for"),
        (Driver((13, 1), (H200,)), None, "cpu", "an NVIDIA H200 is here, but not CUDA 13's nvcc"),
        (Driver((13, 1), (H200, A100)), "nvcc", "cuda", "an NVIDIA H200 is here"),
    ],
)
def test_what_works_here(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, compiler: str | None, target: str, reason: str
) -> None:
    monkeypatch.setattr(module, "find_driver", lambda: driver)
    monkeypatch.setattr(cuda_toolkit, "find_nvcc", lambda: compiler)
    monkeypatch.setattr(cuda_toolkit, "find_cudart", lambda: compiler)
    choice = best_target()
    assert choice.target == target
    assert choice.reason.startswith(reason)


@pytest.mark.parametrize(("arch", "target"), [("sm_90a", "cuda"), ("x86-64-v3", "cpu"), ("native", "cpu")])
def test_an_architecture_says_whose_it_is(monkeypatch: pytest.MonkeyPatch, arch: str, target: str) -> None:
    monkeypatch.setattr(module, "find_driver", lambda: Driver((13, 1), (H200,)))
    assert best_target(arch).target == target
