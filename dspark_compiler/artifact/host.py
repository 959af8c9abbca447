"""Whether this machine can run what an artifact holds."""

import platform
from pathlib import Path

from dspark_compiler.artifact.manifest import TargetInfo
from dspark_compiler.errors import ArtifactError

RUNNABLE_KINDS = ("cpu",)

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


def check_host(target: TargetInfo, where: str) -> None:
    """Refuses an artifact that this machine cannot run; ``where`` begins the message.

    Raises:
        ArtifactError: naming the target, processor or feature that is missing, and the remedy.
    """
    if target.kind not in RUNNABLE_KINDS:
        raise ArtifactError(
            f"{where}: was compiled for {target.kind}, this version runs {', '.join(RUNNABLE_KINDS)}; "
            "compile again with --target cpu"
        )
    machine = platform.machine()
    if target.triple.split("-")[0] != machine:
        raise ArtifactError(f"{where}: was compiled for {target.triple}, this machine is {machine}; compile it here")
    flags = cpu_flags()
    if flags is not None and (missing := missing_features(target.cpu_features, flags)):
        raise ArtifactError(
            f"{where}: was compiled for {target.arch}, this processor lacks {', '.join(missing)}; "
            "compile again with --arch x86-64-v3"
        )
