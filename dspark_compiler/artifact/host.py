"""Whether this machine can run what an artifact holds."""

import importlib.util
import platform
from pathlib import Path

from dspark_compiler.artifact.amd import find_hip
from dspark_compiler.artifact.manifest import TargetInfo
from dspark_compiler.artifact.nvidia import find_driver, runs_on
from dspark_compiler.artifact.vulkan import find_vulkan
from dspark_compiler.errors import ArtifactError, InputError

RUNNABLE_KINDS = ("cpu", "cuda", "rocm", "vulkan", "onnxruntime")

CUDA = (13, 0)  # of the runtime library an artifact carries

# Where /proc/cpuinfo calls a feature of LLVM's something else altogether.
_CPUINFO_NAMES = {"sse3": "pni", "lzcnt": "abm", "prfchw": "3dnowprefetch"}
_CPUINFO = Path("/proc/cpuinfo")


def cpu_flags() -> frozenset[str] | None:
    """The processor's features as Linux names them; None where Linux does not say."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return None


def missing_features(needed: tuple[str, ...], flags: frozenset[str]) -> list[str]:
    """The features in ``needed`` (LLVM's or Linux' spelling) that ``flags`` lacks."""
    present = {_plain(flag) for flag in flags}
    return [name for name in needed if _plain(_CPUINFO_NAMES.get(name, name)) not in present]


def _plain(feature: str) -> str:
    """sse4.2 and sse4_2, avx512vnni and avx512_vnni, amx-tile and amx_tile are the same."""
    return feature.translate(str.maketrans("", "", "._-"))


def check_host(target: TargetInfo, where: str, device: int = 0) -> None:
    """Refuses an artifact that this machine cannot run on the device of a number; ``where`` begins the message.

    Raises:
        ArtifactError: naming the target, GPU, driver, processor or feature that is missing, and the remedy.
        InputError: there is no device of that number.
    """
    if target.kind not in RUNNABLE_KINDS:
        raise ArtifactError(
            f"{where}: was compiled for {target.kind}, this version runs {', '.join(RUNNABLE_KINDS)}; "
            "compile again with one of these as --target"
        )
    if target.kind == "onnxruntime":
        _check_onnxruntime(where)
        return
    machine = platform.machine()
    if target.triple.split("-")[0] != machine:
        raise ArtifactError(f"{where}: was compiled for {target.triple}, this machine is {machine}; compile it here")
    flags = cpu_flags()
    if flags is not None and (missing := missing_features(target.cpu_features, flags)):
        raise ArtifactError(
            f"{where}: was compiled for {target.arch}, this processor lacks {', '.join(missing)}; "
            + ("compile again with --arch x86-64-v3" if target.kind == "cpu" else "a newer one is needed")
        )
    if target.kind == "cuda":
        _check_gpu(target.arch, where, device)
    elif target.kind == "rocm":
        _check_amd(target.arch, where, device)
    elif target.kind == "vulkan":
        _check_vulkan(target.arch, where, device)
    elif device:
        raise InputError(f"--device {device}: {where} was compiled for the processor, which is one device, 0")


def _check_onnxruntime(where: str) -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ArtifactError(
            f"{where}: is run by ONNX Runtime, which is not installed; pip install onnxruntime (or onnxruntime-gpu)"
        )


def _check_gpu(arch: str, where: str, device: int) -> None:
    driver = find_driver()
    if driver is None:
        raise ArtifactError(
            f"{where}: was compiled for Nvidia GPUs ({arch}), this machine has no driver of theirs (libcuda.so.1); "
            "install one, or compile with --target cpu"
        )
    if driver.cuda < CUDA:
        raise ArtifactError(
            f"{where}: needs a driver for CUDA {CUDA[0]}.{CUDA[1]} (version 580 or later), this machine's is for CUDA "
            f"{driver.cuda[0]}.{driver.cuda[1]}; install a newer one"
        )
    if not driver.gpus:
        why = "" if driver.problem is None else f" ({driver.problem})"
        raise ArtifactError(
            f"{where}: was compiled for Nvidia GPUs ({arch}), the driver offers this process none{why}; see nvidia-smi"
        )
    _check_number(device, [gpu.name for gpu in driver.gpus])
    gpu = driver.gpus[device]
    if not runs_on(arch, gpu.capability):
        found = f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})"
        raise ArtifactError(f"{where}: was compiled for {arch}, this machine has an {found}; compile it for that")


def _check_amd(arch: str, where: str, device: int) -> None:
    hip = find_hip()
    if hip is None:
        raise ArtifactError(
            f"{where}: was compiled for AMD's GPUs ({arch}), this machine has no HIP runtime (libamdhip64.so); install "
            "AMD's driver and ROCm 6 or later, or compile with --target cpu"
        )
    if not hip.gpus:
        raise ArtifactError(
            f"{where}: was compiled for AMD's GPUs ({arch}), the HIP runtime serves none: {hip.problem}; see rocminfo"
        )
    _check_number(device, [gpu.name for gpu in hip.gpus])
    gpu = hip.gpus[device]
    if gpu.arch != arch:
        raise ArtifactError(
            f"{where}: was compiled for {arch}, device {device} is {gpu.name} ({gpu.arch}); compile it for that"
        )


def _check_vulkan(arch: str, where: str, number: int) -> None:
    vulkan = find_vulkan()
    if vulkan is None:
        raise ArtifactError(
            f"{where}: was compiled for Vulkan, this machine has no loader (libvulkan.so.1); install it (Debian: "
            "libvulkan1) and a driver, or compile with --target cpu"
        )
    if not vulkan.devices:
        raise ArtifactError(
            f"{where}: was compiled for Vulkan, this machine has no device ({vulkan.problem}); install the GPU's "
            "driver (or Debian's mesa-vulkan-drivers)"
        )
    _check_number(number, [device.name for device in vulkan.devices])
    device = vulkan.devices[number]
    found = f"Vulkan device {number} ({device.name}, {device.driver})"
    if device.problem is not None:
        raise ArtifactError(f"{where}: {found} {device.problem}; install a newer driver, or use another --device")
    if device.lacking:
        raise ArtifactError(f"{where}: {found} lacks {device.lacking}, which kernels need; use another --device")
    if not device.runs(arch):
        raise ArtifactError(
            f"{where}: was compiled for {arch}, {found} has subgroups of {device.subgroup_size}; compile it here"
        )


def _check_number(number: int, names: list[str]) -> None:
    if not 0 <= number < len(names):
        listed = ", ".join(f"{place}: {name}" for place, name in enumerate(names))
        raise InputError(f"--device {number}: there is none of this number; this machine has {listed}")
