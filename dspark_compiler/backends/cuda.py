"""The CUDA target: code for one architecture of Nvidia's, compiled with or without such a GPU at hand."""

import ctypes
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax.backend.cuda.pipeline import dataflow_lower_passes

from dspark_compiler.artifact import TargetInfo
from dspark_compiler.backends import cuda_toolkit
from dspark_compiler.backends.cpu import _V2
from dspark_compiler.errors import InputError, LoweringError
from dspark_compiler.schedules.cuda.layouts import FragmentLayouts
from dspark_compiler.schedules.cuda.rules import gpu_rules
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.tune import TuningStep

_OLDEST = 80  # mma.m16n8k16 of bfloat16 begins with Ampere
_DEFAULT_ARCH = "sm_90a"  # where there is no GPU to ask
_HOST_LEVEL, _HOST_FEATURES = "x86-64-v2", _V2
_MAX_SHARED = 48 * 1024  # bytes a block of a rule's kernel may use


@dataclass(frozen=True)
class CudaBackend:
    """Code for ``arch``, such as sm_90a; None takes this machine's GPU, or sm_90a where there is none.

    Raises:
        InputError: a name that is no architecture, or one too old for the kernels.
        BackendUnavailableError: what compiling needs is not here.
    """

    arch: str | None = None

    def __post_init__(self) -> None:
        cuda_toolkit.prepare()
        if self.arch is None:
            return
        match = re.fullmatch(r"sm_(\d{2,3})[af]?", self.arch)
        if match is None or int(match[1]) < _OLDEST:
            raise InputError(f"--arch {self.arch}: give one from sm_{_OLDEST} on, such as sm_90a for H100 and H200")

    @cached_property
    def spec(self) -> TargetInfo:
        """The machine that can run what this backend builds."""
        triple = tvm.target.codegen.llvm_get_system_triple()
        return TargetInfo("cuda", self.arch or _local_arch() or _DEFAULT_ARCH, triple, _HOST_FEATURES)

    @cached_property
    def target(self) -> Any:
        """The tvm.target.Target."""
        device = {
            "kind": "cuda",
            "arch": self.spec.arch,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": _MAX_SHARED,
            "thread_warp_size": 32,
        }
        return tvm.target.Target(device, host={"kind": "llvm", "mtriple": self.spec.triple, "mcpu": _HOST_LEVEL})

    def layouts(self, dtype: str) -> FragmentLayouts:
        """Weights in tensor core tiles."""
        return FragmentLayouts(dtype, self.spec.arch)

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""
        local = _local_arch()
        # Code with an architecture's own instructions (sm_90a) runs on that one alone.
        return local is not None and local.rstrip("af") == self.spec.arch.rstrip("af")

    def schedule(self, module: Any, records: Records) -> Any:
        """See Backend."""
        with self.target:
            return gpu_rules()(module)

    def tune(self, module: Any, records: Records, trials: int, progress: Callable[[TuningStep], None]) -> int:
        """See Backend."""
        raise InputError("--tune-trials: schedules for cuda cannot be searched in this version; leave it out")

    def build(self, module: Any, library: Path) -> None:
        """See Backend."""
        passes = [
            *dataflow_lower_passes(self.target),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
        try:
            with self.target:
                pipeline = tvm.transform.Sequential(passes)
                executable = relax.build(module, target=self.target, relax_pipeline=pipeline)
            with tempfile.TemporaryDirectory(prefix="dspark-link-") as workspace:
                executable.export_library(str(library), workspace_dir=workspace)
        except (RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines()
            raise LoweringError(
                f"--target cuda: TVM could not build the module: {lines[-1] if lines else error}"
            ) from error

    def runtime_libraries(self) -> Sequence[Path]:
        """See Backend."""
        return [Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so", *cuda_toolkit.runtime_libraries()]


def _local_arch() -> str | None:
    """The architecture of this machine's first GPU; None where there is no GPU or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    # What stands in for the driver while compiling lacks cuInit.
    if not hasattr(driver, "cuInit") or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return None
    capability_major, capability_minor = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
    if not count.value or driver.cuDeviceGetAttribute(ctypes.byref(major), capability_major, 0):
        return None
    driver.cuDeviceGetAttribute(ctypes.byref(minor), capability_minor, 0)
    number = f"sm_{major.value}{minor.value}"
    return number + "a" if number == "sm_90" else number
