"""What each target needs besides Python packages."""

import importlib.util
import shutil
from collections.abc import Iterator
from importlib import metadata

from dspark_compiler import rocm_runtime, vulkan_runtime
from dspark_compiler.artifact.amd import find_hip
from dspark_compiler.artifact.host import CUDA
from dspark_compiler.artifact.nvidia import find_driver
from dspark_compiler.artifact.vulkan import VulkanDevice, find_vulkan
from dspark_compiler.doctor.findings import Finding, Status
from dspark_compiler.native.library import NativeLibrary

_TELLING = ("float16", "storage16", "int8", "storage8", "cooperative_matrix")  # features that decide which kernels run
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
    """The cuda target: a driver and a GPU to run, CUDA's compiler and runtime library to compile."""
    section = "target cuda"
    yield from _gpu_findings(section)
    if importlib.util.find_spec("tvm") is None:
        yield Finding(section, "compiler", Status.ABSENT, "known once the packages for compiling are installed")
        return
    from dspark_compiler.backends.cuda_toolkit import find_cudart, find_nvcc

    for name, found in (("compiler", find_nvcc()), ("libcudart", find_cudart())):
        detail = "none of CUDA 13 found, --target cuda needs it" if found is None else str(found)
        yield Finding(section, name, Status.ABSENT if found is None else Status.OK, detail)


def _gpu_findings(section: str) -> Iterator[Finding]:
    driver = find_driver()
    if driver is None:
        yield Finding(section, "driver", Status.ABSENT, "no libcuda.so.1 found; compiling needs none")
        return
    version = f"for CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if driver.cuda < CUDA:
        wanted = f"{version}, artifacts need one for CUDA {CUDA[0]}.{CUDA[1]}"
        yield Finding(section, "driver", Status.MISSING, wanted, "install Nvidia's driver 580 or later")
    else:
        yield Finding(section, "driver", Status.OK, version)
    if not driver.gpus:
        yield Finding(section, "GPU", Status.ABSENT, driver.problem or "none for this process")
    for index, gpu in enumerate(driver.gpus):
        detail = f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}, {gpu.memory_bytes / 2**30:.0f} GiB"
        yield Finding(section, f"GPU {index}", Status.OK, detail if index else f"{detail}; artifacts run on this one")


def rocm_findings() -> Iterator[Finding]:
    """The rocm target: HIP and a GPU to run, a linker, the device libraries and our runtime library to compile."""
    section = "target rocm"
    yield Finding(section, "state", Status.ABSENT, "built and checked, not yet run on hardware")
    hip = find_hip()
    if hip is None:
        yield Finding(section, "HIP", Status.ABSENT, "no libamdhip64.so found; compiling needs none")
    elif not hip.gpus:
        yield Finding(section, "GPU", Status.ABSENT, str(hip.problem))
    for index, gpu in enumerate(hip.gpus if hip is not None else ()):
        detail = f"{gpu.name}, {gpu.arch}, {gpu.memory_bytes / 2**30:.0f} GiB"
        yield Finding(section, f"GPU {index}", Status.OK, detail)
    if importlib.util.find_spec("tvm") is None:
        yield Finding(section, "compiler", Status.ABSENT, "known once the packages for compiling are installed")
        return
    from dspark_compiler.backends.rocm import tools

    for name, path, remedy in (
        ("linker", tools.find_lld(), tools.LLD_REMEDY),
        ("device libraries", tools.find_bitcode(), tools.BITCODE_REMEDY),
    ):
        detail = f"--target rocm needs {remedy}" if path is None else str(path)
        yield Finding(section, name, Status.ABSENT if path is None else Status.OK, detail)
    yield _runtime(section, rocm_runtime.library)


def vulkan_findings() -> Iterator[Finding]:
    """The vulkan target: a loader and devices to run, our runtime library to compile."""
    section = "target vulkan"
    vulkan = find_vulkan()
    if vulkan is None:
        yield Finding(section, "loader", Status.ABSENT, "no libvulkan.so.1 found (Debian: libvulkan1)")
    elif not vulkan.devices:
        detail = f"{vulkan.problem}; the GPU's, or Debian's mesa-vulkan-drivers, would bring one"
        yield Finding(section, "device", Status.ABSENT, detail)
    for index, device in enumerate(vulkan.devices if vulkan is not None else ()):
        yield _vulkan_device(section, index, device)
    yield _runtime(section, vulkan_runtime.library)


def _runtime(section: str, library: NativeLibrary) -> Finding:
    """Our library that runs what is compiled for a target."""
    if (missing := library.missing()) and not library.is_built():
        detail = f"cannot be built without {' and '.join(missing)}; --target {library.target} needs it"
        return Finding(section, "runtime", Status.ABSENT, detail)
    detail = str(library.find()) if library.is_built() else "built at the first use"
    return Finding(section, "runtime", Status.OK, detail)


def _vulkan_device(section: str, index: int, device: VulkanDevice) -> Finding:
    if device.problem is not None:
        return Finding(section, f"device {index}", Status.MISSING, f"{device.name} {device.problem}", "newer driver")
    telling = [name for name in _TELLING if name in device.features]
    version = ".".join(map(str, device.version))
    parts = [
        *(device.name, device.driver, f"Vulkan {version}", f"subgroups of {device.subgroup_size}", *telling),
        f"{device.memory_bytes / 2**30:.0f} GiB, at most {device.largest_bytes / 2**30:.0f} in one buffer",
    ]
    return Finding(section, f"device {index}", Status.OK, ", ".join(parts))


def onnxruntime_findings() -> Iterator[Finding]:
    """The onnxruntime target: the package, whatever provides it."""
    section = "target onnxruntime"
    names = ("onnxruntime-gpu", "onnxruntime")
    versions = [f"{name} {version}" for name in names if (version := _version(name)) is not None]
    if versions:
        yield Finding(section, "onnxruntime", Status.OK, versions[0])
    else:
        yield Finding(section, "onnxruntime", Status.ABSENT, "not installed; pip install onnxruntime, or -gpu")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
