"""What a test for Nvidia GPUs needs of a machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark_compiler import CompileConfig
from dspark_compiler.artifact.nvidia import find_driver, runs_on
from dspark_compiler.backends.cuda_toolkit import find_cudart, find_nvcc
from dspark_compiler.driver import compile_model
from tests.tiny_models import TINY

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


def compiled(name: str, folder: Path, **options: Any) -> Path:
    """The artifact of a tiny model, for a GPU unless another target is asked for."""
    if not (folder / "source").exists():
        TINY[name]().save_pretrained(folder / "source")
    sizes = {"max_seq_len": 64, "prefill_widths": (8, 40), "verify_width": 4, "max_batch": 2}
    place = {"target": "cuda", "arch": ARCH, "output": folder / "model.dspark"}
    return compile_model(str(folder / "source"), CompileConfig(check=False, **(sizes | place | options))).path


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
