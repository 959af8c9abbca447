"""Our Vulkan runtime library: found in the installed package, or compiled into the user's cache at first use.

Everything here needs the standard library alone: building a wheel calls it, too.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from dspark_compiler.errors import BackendUnavailableError

SOURCES = PACKAGED = Path(__file__).parent  # a wheel has the library beside its sources

_COMPILERS = ("c++", "g++", "clang++")
_HEADER = "vulkan/vulkan_core.h"
_BUILT_AGAINST = ("apache-tvm", "apache-tvm-ffi")  # whose classes it derives from
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden")


def load() -> None:
    """Registers the Vulkan runtime with the TVM runtime of this process, once; no device is touched.

    Raises:
        BackendUnavailableError: it is not here and cannot be built.
    """
    _load(find())


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    import tvm

    if tvm.get_global_func("device_api.vulkan", allow_missing=True) is not None:
        return ctypes.CDLL(None)  # an artifact brought it
    try:
        return ctypes.CDLL(str(path), ctypes.RTLD_LOCAL)
    except OSError as error:
        raise BackendUnavailableError(f"{path}: cannot be loaded: {error}; remove it to have it built anew") from error


def find() -> Path:
    """The library for these sources and the installed TVM, built if nobody has done so yet.

    Raises:
        BackendUnavailableError: it cannot be built, with what is missing and how to get it.
    """
    name = library_name()
    packaged, cached = PACKAGED / name, _cache_folder() / name
    if packaged.is_file():
        return packaged
    if not cached.is_file():
        build(cached)
    return cached


def is_built() -> bool:
    """Whether ``find`` has nothing to build."""
    return any((folder / library_name()).is_file() for folder in (PACKAGED, _cache_folder()))


def library_name() -> str:
    """A name that changes with the sources and what they are compiled against."""
    digest = hashlib.sha256()
    for package in _BUILT_AGAINST:
        digest.update(f"{package} {_version(package)}\n".encode())
    for path in sorted((*SOURCES.glob("*.cc"), *SOURCES.glob("*.h"))):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return f"libdspark_vulkan-{digest.hexdigest()[:12]}.so"


def missing() -> list[str]:
    """What building lacks here, each with how to get it."""
    lacks = []
    if _compiler() is None:
        lacks.append("a C++ compiler (Debian: g++)")
    if _vulkan_headers() is None:
        lacks.append("Vulkan's headers (Debian: libvulkan-dev)")
    if any(_headers_of(module) is None for module in ("tvm", "tvm_ffi")):
        lacks.append("TVM's headers (pip install 'dspark-compile[compile]')")
    return lacks


def build(library: Path) -> None:
    """Compiles the library; the file appears whole or not at all.

    Raises:
        BackendUnavailableError: something is missing, or the compiler refuses.
    """
    if lacks := missing():
        raise BackendUnavailableError(f"--target vulkan: its runtime cannot be built without {' and '.join(lacks)}")
    includes = [flag for module in ("tvm", "tvm_ffi") for flag in ("-isystem", str(_headers_of(module)))]
    includes.append(f"-I{_vulkan_headers()}")  # not -isystem: a folder of the system must keep its place
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as name:
        folder = Path(name)
        sources = sorted(SOURCES.glob("*.cc"))
        objects = [folder / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [[*_FLAGS, *includes, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
            list(pool.map(_compile, commands))
        linked = folder / library.name
        _compile(["-shared", "-s", "-o", str(linked), *map(str, objects), "-ldl"])
        os.replace(linked, library)


def _compile(arguments: Sequence[str]) -> None:
    done = subprocess.run([str(_compiler()), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BackendUnavailableError(
            f"--target vulkan: its runtime does not compile: {lines[0] if lines else 'no message'}"
        )


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)


def _vulkan_headers() -> Path | None:
    """The folder they are in: an SDK's, or the system's."""
    folders = [Path(os.environ[name]) / "include" for name in ("VULKAN_SDK",) if name in os.environ]
    folders += [Path("/usr/include"), Path("/usr/local/include")]
    return next((folder for folder in folders if (folder / _HEADER).is_file()), None)


def _headers_of(module: str) -> Path | None:
    """The headers a package brings; it is not imported for that."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "include"
    return folder if folder.is_dir() else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dspark-compile" / "lib"
