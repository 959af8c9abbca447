"""What each target needs besides Python packages."""

import ctypes.util
import importlib.util
import shutil
from collections.abc import Iterator, Sequence

from dspark_compiler.doctor.findings import Finding, Status

_COMPILERS = ("cc", "gcc", "clang", "g++")  # any of them links a compiled model


def cpu_findings() -> Iterator[Finding]:
    """The cpu target: a C compiler, and the vectors kernels will be shaped for."""
    section = "target cpu"
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        yield Finding(
            section, "C compiler", Status.MISSING, "none found, models cannot be linked", "apt-get install gcc"
        )
    else:
        yield Finding(section, "C compiler", Status.OK, compiler)
    if importlib.util.find_spec("tvm") is None:
        yield Finding(section, "vectors", Status.ABSENT, "known once the packages for compiling are installed")
        return
    from dspark_compiler.backends.cpu import CpuBackend

    backend = CpuBackend()
    bits = backend.isa.lanes * 32
    yield Finding(section, "vectors", Status.OK, f"{bits} bits, for {backend.spec.arch} ({backend.spec.triple})")


def cuda_findings() -> Iterator[Finding]:
    """NVIDIA's driver and compiler."""
    return _found("target cuda", libraries=("cuda",), programs=("nvidia-smi", "nvcc"))


def rocm_findings() -> Iterator[Finding]:
    """AMD's runtime and linker."""
    return _found("target rocm", libraries=("amdhip64",), programs=("rocminfo", "ld.lld"))


def vulkan_findings() -> Iterator[Finding]:
    """The Vulkan loader."""
    return _found("target vulkan", libraries=("vulkan",), programs=("vulkaninfo",))


def _found(section: str, libraries: Sequence[str], programs: Sequence[str]) -> Iterator[Finding]:
    """Says first that the target cannot be had, whatever is found of it."""
    yield Finding(section, "compiling", Status.ABSENT, "not available in this version; --target cpu is")
    for name in libraries:
        path = ctypes.util.find_library(name)
        yield Finding(section, f"lib{name}", Status.OK if path else Status.ABSENT, path or "not found")
    for name in programs:
        path = shutil.which(name)
        yield Finding(section, name, Status.OK if path else Status.ABSENT, path or "not found")
