"""The linker and the device library that code for AMD's GPUs needs, found where ROCm and Debian put them."""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dspark_compiler.errors import BackendUnavailableError

_OLDEST_LLD = 17  # older ones do not know the object files
_NEWEST_LLD = 24
_BITCODE = "ocml.bc"

LLD_REMEDY = f"lld {_OLDEST_LLD} or later (Debian: apt install lld-19; ROCm: llvm/bin/ld.lld)"
BITCODE_REMEDY = f"ROCm's device libraries, {_BITCODE} (Debian: apt install rocm-device-libs)"


def missing() -> list[str]:
    """What compiling lacks here, each with how to get it."""
    return [
        *([] if find_lld() else [LLD_REMEDY]),
        *([] if find_bitcode() else [BITCODE_REMEDY]),
    ]


def require() -> None:
    """Raises BackendUnavailableError where something is missing, with how to get it."""
    if lacks := missing():
        raise BackendUnavailableError(f"--target rocm: needs {' and '.join(lacks)}")


def find_lld() -> Path | None:
    """A linker that is new enough."""
    return next((path for path in _lld_candidates() if _lld_version(path) >= _OLDEST_LLD), None)


def find_bitcode() -> Path | None:
    """The mathematical functions of the device libraries, as LLVM bitcode."""
    folders = [_rocm() / "amdgcn/bitcode", *Path("/usr/lib").glob("*/amdgcn/bitcode"), Path("/usr/lib/amdgcn/bitcode")]
    return next((folder / _BITCODE for folder in folders if (folder / _BITCODE).is_file()), None)


def link(relocatable: bytes) -> bytes:
    """The code object that an object file becomes.

    Raises:
        ValueError: the linker refuses it, as where a function is missing.
    """
    lld = find_lld()
    assert lld is not None, "looked for before anything is compiled"
    with tempfile.TemporaryDirectory(prefix="dspark-link-") as name:
        source, target = Path(name) / "kernels.o", Path(name) / "kernels.co"
        source.write_bytes(relocatable)
        command = [str(lld), "-flavor", "gnu", "--no-undefined", "-shared", str(source), "-o", str(target)]
        if lld.name.startswith("ld.lld"):
            del command[1:3]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ValueError(f"{lld.name}: {lines[0] if lines else 'no message'}")
        return target.read_bytes()


def _rocm() -> Path:
    return Path(os.environ.get("ROCM_PATH", "/opt/rocm"))


def _lld_candidates() -> Iterator[Path]:
    names = [f"ld.lld-{version}" for version in range(_NEWEST_LLD, _OLDEST_LLD - 1, -1)]
    for name in (*names, "ld.lld", "lld"):
        if found := shutil.which(name):
            yield Path(found)
    if (own := _rocm() / "llvm/bin/ld.lld").is_file():
        yield own


@functools.cache
def _lld_version(path: Path) -> int:
    """Its major version; 0 where it does not say."""
    flavor = [] if path.name.startswith("ld.lld") else ["-flavor", "gnu"]
    try:
        done = subprocess.run([str(path), *flavor, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.search(r"LLD (\d+)\.", done.stdout)
    return int(found[1]) if found else 0
