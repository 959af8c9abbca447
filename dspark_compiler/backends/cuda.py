"""The CUDA target: code for one architecture of Nvidia's, compiled with or without such a GPU at hand."""

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
from dspark_compiler.artifact.host import CUDA
from dspark_compiler.artifact.nvidia import Gpu, find_driver, runs_on
from dspark_compiler.backends import cuda_toolkit
from dspark_compiler.backends.calling import kernels_trust_callers, launching_host
from dspark_compiler.backends.cpu import V2
from dspark_compiler.errors import InputError, LoweringError
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.cuda.dependent_launch import register_pipeline
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.layouts import FragmentLayouts
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.gpu_rules import gpu_rules
from dspark_compiler.schedules.tune import TuningStep, tune

_OLDEST = 90  # clusters begin with Hopper
_OWN_INSTRUCTIONS = 9  # from this capability on, code for one architecture alone has instructions others lack
_DEFAULT_ARCH = "sm_90a"  # where there is no GPU to ask
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
        gpu = _gpu_here()
        arch = self.arch or (_DEFAULT_ARCH if gpu is None else _arch_of(gpu))
        return TargetInfo("cuda", arch, triple, V2)

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
        return tvm.target.Target(device, host=launching_host(self.spec.triple))

    @property
    def linears(self) -> FragmentLinears:
        """See Backend."""
        return FragmentLinears(self.spec.arch)

    def layouts(self, dtype: str) -> FragmentLayouts:
        """Weights in tensor core tiles."""
        return FragmentLayouts(dtype, self.spec.arch)

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""
        driver, gpu = find_driver(), _gpu_here()
        return (
            driver is not None and driver.cuda >= CUDA and gpu is not None and runs_on(self.spec.arch, gpu.capability)
        )

    def schedule(self, module: Any, records: Records) -> Any:
        """See Backend."""
        with self.target:
            # Before the rules, which would make kernels of what is only another view.
            return tvm.transform.Sequential([relax.transform.RewriteDataflowReshape(), gpu_rules(matrix_vector=True)])(
                module
            )

    def tune(
        self, module: Any, records: Records, bench: Bench, trials: int, progress: Callable[[TuningStep], None]
    ) -> int:
        """See Backend; functions without a template are left to the rules."""
        return tune(module, self.linears, bench, records, trials=trials, progress=progress)

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
            with self.target, kernels_trust_callers():
                pipeline = tvm.transform.Sequential(passes)
                executable = relax.build(
                    module, target=self.target, relax_pipeline=pipeline, tir_pipeline=register_pipeline()
                )
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


def _gpu_here() -> Gpu | None:
    """The GPU that would be used."""
    driver = find_driver()
    return driver.gpus[0] if driver is not None and driver.gpus else None


def _arch_of(gpu: Gpu) -> str:
    """The architecture that makes use of all a GPU has."""
    major, minor = gpu.capability
    return f"sm_{major}{minor}" + ("a" if major >= _OWN_INSTRUCTIONS else "")
