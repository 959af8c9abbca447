"""The Vulkan target: SPIR-V that any device of Vulkan 1.2 runs which has what the kernels say they need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tvm

from dspark_compiler.artifact import TargetInfo
from dspark_compiler.artifact.vulkan import find_vulkan
from dspark_compiler.backends.calling import launching_host
from dspark_compiler.backends.cpu import V2
from dspark_compiler.backends.simt_build import build_library, schedule_for
from dspark_compiler.backends.vulkan.build import register
from dspark_compiler.backends.vulkan.handed_on import place_handed_on
from dspark_compiler.backends.vulkan.pipeline import register_pipeline
from dspark_compiler.errors import InputError
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.simt.layouts import RowLayouts
from dspark_compiler.schedules.simt.row_linears import RowLinears
from dspark_compiler.schedules.tune import TuningStep, tune
from dspark_compiler.vulkan_runtime import library

_ARCH = "generic"  # kernels count on no subgroup size beyond what threads.py says
_MOST_THREADS, _MOST_SHARED = 256, 16 * 1024  # of a work group; bytes: what every device has


@dataclass(frozen=True)
class VulkanBackend:
    """Code for all devices; ``arch`` is None or "generic".

    Raises:
        InputError: another architecture.
        BackendUnavailableError: the runtime library is not here and cannot be built.
    """

    arch: str | None = None

    def __post_init__(self) -> None:
        if self.arch not in (None, _ARCH):
            raise InputError(f"--arch {self.arch}: the vulkan target compiles for all devices alike; leave it out")
        library.load()
        register()

    @cached_property
    def spec(self) -> TargetInfo:
        """The machine that can run what this backend builds."""
        return TargetInfo("vulkan", _ARCH, tvm.target.codegen.llvm_get_system_triple(), V2)

    @cached_property
    def target(self) -> Any:
        """The tvm.target.Target."""
        supported = ("float16", "int8", "int16", "int64", "8bit_buffer", "16bit_buffer")
        device = {
            "kind": "vulkan",
            "max_threads_per_block": _MOST_THREADS,
            "max_shared_memory_per_block": _MOST_SHARED,
            "thread_warp_size": 1,  # what TVM's own reductions may count on
            **{f"supports_{name}": True for name in supported},
        }
        return tvm.target.Target(device, host=launching_host(self.spec.triple))

    @property
    def linears(self) -> RowLinears:
        """See Backend."""
        return RowLinears()

    def layouts(self, dtype: str) -> RowLayouts:
        """See RowLayouts."""
        return RowLayouts(dtype)

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""
        found = find_vulkan()
        return found is not None and any(device.runs(_ARCH) for device in found.devices[:1])

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
        build_library(module, self.target, register_pipeline(), library, placing=[place_handed_on])

    def runtime_libraries(self) -> Sequence[Path]:
        """See Backend."""
        return [Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so", library.find()]
