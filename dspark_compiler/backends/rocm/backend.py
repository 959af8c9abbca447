"""The ROCm target: code for one architecture of AMD's, compiled with or without such a GPU at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tvm

from dspark_compiler.artifact import TargetInfo
from dspark_compiler.artifact.amd import find_hip
from dspark_compiler.backends.calling import launching_host
from dspark_compiler.backends.cpu import V2
from dspark_compiler.backends.rocm import tools
from dspark_compiler.backends.rocm.build import register, register_pipeline
from dspark_compiler.backends.simt_build import build_library, schedule_for
from dspark_compiler.errors import InputError
from dspark_compiler.rocm_runtime import library
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.rocm.architectures import ARCHITECTURES, Architecture, find_architecture
from dspark_compiler.schedules.rocm.layouts import WaveLayouts
from dspark_compiler.schedules.simt.row_linears import RowLinears
from dspark_compiler.schedules.tune import TuningStep, tune

_MOST_THREADS, _MOST_SHARED = 256, 64 * 1024  # of a work group: what TVM's generator compiles for; bytes


@dataclass(frozen=True)
class RocmBackend:
    """Code for ``arch``, such as gfx942; None takes this machine's GPU.

    Raises:
        InputError: an architecture there are no kernels for, or none is given and there is no GPU to ask.
        BackendUnavailableError: what compiling needs is not here.
    """

    arch: str | None = None

    def __post_init__(self) -> None:
        tools.require()
        library.load()
        register()
        assert self.architecture

    @cached_property
    def architecture(self) -> Architecture:
        """What is compiled for."""
        if self.arch is not None:
            return find_architecture(self.arch)
        hip = find_hip()
        if hip is None or not hip.gpus:
            raise InputError(f"--target rocm: no AMD GPU here to compile for; give --arch {', '.join(ARCHITECTURES)}")
        return find_architecture(hip.gpus[0].arch)

    @cached_property
    def spec(self) -> TargetInfo:
        """The machine that can run what this backend builds."""
        triple = tvm.target.codegen.llvm_get_system_triple()
        return TargetInfo("rocm", self.architecture.name, triple, V2)

    @cached_property
    def target(self) -> Any:
        """The tvm.target.Target."""
        device = {
            "kind": "rocm",
            "mcpu": self.architecture.name,
            "max_threads_per_block": _MOST_THREADS,
            "max_num_threads": _MOST_THREADS,
            "max_shared_memory_per_block": _MOST_SHARED,
            "thread_warp_size": self.architecture.wave,
        }
        return tvm.target.Target(device, host=launching_host(self.spec.triple))

    @property
    def linears(self) -> RowLinears:
        """See Backend."""
        return RowLinears()

    def layouts(self, dtype: str) -> WaveLayouts:
        """Weights row by row."""
        return WaveLayouts(dtype, self.architecture)

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""
        hip = find_hip()
        return hip is not None and bool(hip.gpus) and hip.gpus[0].arch == self.architecture.name

    def schedule(self, module: Any, records: Records) -> Any:
        """See Backend."""
        return schedule_for(self.target, module)

    def tune(
        self, module: Any, records: Records, bench: Bench, trials: int, progress: Callable[[TuningStep], None]
    ) -> int:
        """See Backend; functions without a template are left to the rules."""
        return tune(module, self.linears, bench, records, trials=trials, progress=progress)

    def build(self, module: Any, library: Path) -> None:
        """See Backend."""
        build_library(module, self.target, register_pipeline(), library)

    def runtime_libraries(self) -> Sequence[Path]:
        """See Backend."""
        return [Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so", library.find()]
