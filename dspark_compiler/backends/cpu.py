"""The CPU target: LLVM for the host's vector features or for a portable x86-64 level."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir
from tvm.relax.backend.cpu_generic.pipeline import dataflow_lower_passes, finalize_passes
from tvm.tirx import compilation_pipeline

from dspark_compiler.artifact import TargetInfo
from dspark_compiler.backends.calling import kernels_trust_callers
from dspark_compiler.errors import BackendUnavailableError, InputError, LoweringError
from dspark_compiler.schedules.apply import apply_schedules
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.isa import AVX2, AVX512, NEON, SSE, VectorIsa
from dspark_compiler.schedules.layouts import PanelLayouts
from dspark_compiler.schedules.panel_linears import PanelLinears
from dspark_compiler.schedules.tir_lowering import tir_lowering
from dspark_compiler.schedules.tune import Generated, TuningStep, tune

_PIPELINE = "dspark_cpu"

# x86-64 levels of the psABI, by the /proc/cpuinfo flags each adds.
V2 = ("cx16", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_LEVELS = {"x86-64-v2": V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
# What LLVM may use beyond the levels when it compiles for the very host.
_NATIVE = (
    *("avx512_bf16", "avx512_bitalg", "avx512_fp16", "avx512_vbmi2", "avx512_vnni", "avx512_vpopcntdq"),
    *("avx512ifma", "avx512vbmi", "avx_vnni", "gfni", "pclmulqdq", "vaes", "vpclmulqdq"),
)


@dataclass(frozen=True)
class CpuBackend:
    """LLVM code for ``arch``: None or "native" (this machine), or an x86-64 level.

    Raises:
        InputError: an architecture this machine's family does not have.
    """

    arch: str | None = None

    def __post_init__(self) -> None:
        if self.arch in (None, "native"):
            return
        if platform.machine() != "x86_64" or self.arch not in _LEVELS:
            known = ["native", *_LEVELS] if platform.machine() == "x86_64" else ["native"]
            raise InputError(f"--arch {self.arch}: the cpu target on {platform.machine()} knows {', '.join(known)}")

    @cached_property
    def spec(self) -> TargetInfo:
        """The machine that can run what this backend builds."""
        triple = tvm.target.codegen.llvm_get_system_triple()
        if self.arch in (None, "native"):
            flags = host_flags()
            return TargetInfo("cpu", _host_cpu(), triple, tuple(f for f in (*_V4, *_NATIVE) if f in flags))
        return TargetInfo("cpu", str(self.arch), triple, _LEVELS[str(self.arch)])

    @cached_property
    def isa(self) -> VectorIsa:
        """Vector width kernels are shaped for."""
        features = self.spec.cpu_features
        if "avx512f" in features:
            return AVX512
        if "avx2" in features:
            return AVX2
        return NEON if platform.machine() in ("aarch64", "arm64") else SSE

    @cached_property
    def target(self) -> Any:
        """The tvm.target.Target."""
        return tvm.target.Target(
            {"kind": "llvm", "mtriple": self.spec.triple, "mcpu": self.spec.arch, "num-cores": os.cpu_count() or 1}
        )

    @property
    def linears(self) -> PanelLinears:
        """See Backend."""
        return PanelLinears(self.isa)

    def layouts(self, dtype: str) -> PanelLayouts:
        """Weights in panels, keys in panels; all is computed in float32, however it is stored."""
        return PanelLayouts(self.isa)

    def schedule(self, module: Any, records: Records) -> Any:
        """See Backend."""
        return apply_schedules(module, self.target, self.isa, records)

    def tune(
        self, module: Any, records: Records, bench: Bench, trials: int, progress: Callable[[TuningStep], None]
    ) -> int:
        """See Backend."""
        generated = Generated(self.target, self.isa)
        return tune(module, self.linears, bench, records, trials=trials, generated=generated, progress=progress)

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""
        return host_flags().issuperset(self.spec.cpu_features)

    def build(self, module: Any, library: Path) -> None:
        """Compiles a scheduled IRModule into a shared library.

        Raises:
            BackendUnavailableError: no C compiler to link with.
            LoweringError: TVM or the linker refused the module.
        """
        if not any(shutil.which(name) for name in ("cc", "gcc", "clang", "g++")):
            raise BackendUnavailableError("--target cpu: no C compiler found to link with; install gcc or clang")
        passes = [*dataflow_lower_passes(self.target), *finalize_passes(self.target)]
        try:
            with kernels_trust_callers():
                pipeline = tvm.transform.Sequential(passes)
                executable = relax.build(
                    module, target=self.target, relax_pipeline=pipeline, tir_pipeline=_register_pipeline()
                )
            with tempfile.TemporaryDirectory(prefix="dspark-link-") as workspace:
                executable.export_library(str(library), workspace_dir=workspace)
        except (RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines()
            raise LoweringError(
                f"--target cpu: TVM could not build the module: {lines[-1] if lines else error}"
            ) from error

    def runtime_libraries(self) -> Sequence[Path]:
        """TVM runtime libraries an artifact has to carry."""
        return [Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"]


def _register_pipeline() -> str:
    """Makes the lowering of functions known under the name returned."""
    compilation_pipeline.register_tir_pipeline(_PIPELINE, _pipeline)
    return _PIPELINE


def _pipeline() -> tuple[Any, Any, Any]:
    """Passes on the module, then those on host functions and, of which there are none, on device functions."""
    return (
        tir_lowering(s_tir.transform.LowerThreadAllreduce(), whole=True),
        compilation_pipeline.finalize_host_passes,
        compilation_pipeline.finalize_device_passes,
    )


def host_flags() -> frozenset[str]:
    """CPU flags of this machine as Linux names them; empty where /proc/cpuinfo has none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())


def _host_cpu() -> str:
    return str(tvm.target.codegen.llvm_get_system_cpu())
