"""The target that makes most of this machine."""

from dataclasses import dataclass

from dspark_compiler.artifact.host import CUDA
from dspark_compiler.artifact.nvidia import Driver, Gpu, find_driver
from dspark_compiler.config import Target

_OLDEST = (9, 0)  # compute capability that kernels for cuda are written for


@dataclass(frozen=True)
class Choice:
    """A target, and why it is that one."""

    target: Target
    reason: str


def best_target(arch: str | None = None) -> Choice:
    """Cuda where a GPU runs what is compiled for it, and CUDA's compiler is here; else cpu. ``arch`` decides first."""
    if arch is not None:
        return (
            Choice("cuda", f"--arch {arch} is a GPU's") if arch.startswith("sm_") else Choice("cpu", f"--arch {arch}")
        )
    found = usable_gpu(find_driver())
    if isinstance(found, str):
        return Choice("cpu", found)
    from dspark_compiler.backends.cuda_toolkit import find_cudart, find_nvcc

    if find_nvcc() is None or find_cudart() is None:
        return Choice("cpu", f"an {found.name} is here, but not CUDA 13's nvcc, which --target cuda takes")
    return Choice("cuda", f"an {found.name} is here")


def usable_gpu(driver: Driver | None) -> Gpu | str:
    """The GPU that would run an artifact, or why there is none."""
    if driver is None:
        return "no GPU's driver is here"
    if driver.cuda < CUDA:
        return f"Nvidia's driver here is for CUDA {driver.cuda[0]}.{driver.cuda[1]}, not {CUDA[0]}.{CUDA[1]}"
    if not driver.gpus:
        return f"Nvidia's driver offers no GPU ({driver.problem or 'none for this process'})"
    gpu = driver.gpus[0]
    if gpu.capability < _OLDEST:
        return f"the {gpu.name} here is older than what --target cuda is for"
    return gpu
