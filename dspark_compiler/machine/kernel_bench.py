"""What tuning measures a target's kernels on: the machine itself, as long as it can run them."""

from dspark_compiler.artifact.vulkan import find_vulkan
from dspark_compiler.backends.base import Backend
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.local_bench import LocalBench


def open_bench(backend: Backend) -> Bench:
    """The device that runs what a backend builds."""
    if backend.spec.kind in ("cuda", "vulkan"):
        from dspark_compiler.machine.gpu_bench import GpuBench

        return GpuBench(backend.target)
    return LocalBench(backend.target)


def measured_as(backend: Backend) -> str:
    """What records of this machine are kept under: the architecture, or the family of the first device."""
    if backend.spec.kind != "vulkan":
        return backend.spec.arch
    found = find_vulkan()
    return f"vulkan-{found.devices[0].family}" if found is not None and found.devices else backend.spec.arch
