"""What a test for Nvidia GPUs needs of a machine."""

import pytest

from dspark_compiler.artifact.nvidia import find_driver, runs_on
from dspark_compiler.backends.cuda_toolkit import find_cudart, find_nvcc

ARCH = "sm_90a"


def need_gpu(arch: str = ARCH) -> None:
    """Skips the test where there is no GPU that runs code for ``arch``."""
    driver = find_driver()
    if driver is None or not driver.gpus or not runs_on(arch, driver.gpus[0].capability):
        pytest.skip("needs an NVIDIA GPU")


def need_compiler() -> None:
    """Skips the test where nothing compiles for CUDA."""
    if find_nvcc() is None or find_cudart() is None:
        pytest.skip("needs nvcc and libcudart")
