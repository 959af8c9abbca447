"""The machine itself."""

import platform
from collections.abc import Iterator

from dspark_compiler.artifact.host import cpu_flags
from dspark_compiler.doctor.findings import Finding, Status
from dspark_compiler.machine.bandwidth import ReadBandwidth
from dspark_compiler.machine.processor import processor

_MACHINE = "machine"

# The features that decide how fast kernels can be, by Linux' names.
_TELLING = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "asimd",
    "asimddp",
    "bf16",
    "sve",
)


def machine_findings() -> Iterator[Finding]:
    """Processor, memory and how fast it is read."""
    yield Finding(_MACHINE, "system", Status.OK, f"{platform.system()} {platform.machine()}")
    yield Finding(_MACHINE, "python", Status.OK, platform.python_version())
    yield Finding(_MACHINE, "processor", Status.OK, str(processor()))
    flags = cpu_flags()
    features = "unknown on this system" if flags is None else " ".join(name for name in _TELLING if name in flags)
    yield Finding(_MACHINE, "features", Status.OK, features or "none that matter")
    yield Finding(
        _MACHINE, "read bandwidth", Status.OK, f"{ReadBandwidth().measure() / 1e9:.1f} GB/s, all cores together"
    )
