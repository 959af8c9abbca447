"""What tuning measures a target's kernels on: the machine itself, as long as it can run them."""

from dspark_compiler.backends.base import Backend
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.local_bench import LocalBench


def open_bench(backend: Backend) -> Bench:
    """The device that runs what a backend builds."""
    if backend.spec.kind == "cuda":
        from dspark_compiler.machine.gpu_bench import GpuBench

        return GpuBench(backend.target)
    return LocalBench(backend.target)
