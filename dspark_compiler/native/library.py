"""A runtime library of ours: found in the installed package, or compiled into the user's cache at first use.

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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dspark_compiler.errors import BackendUnavailableError

_SHARED = Path(__file__).parent  # headers that all libraries include
_COMPILERS = ("c++", "g++", "clang++")
_BUILT_AGAINST = ("apache-tvm", "apache-tvm-ffi")  # whose classes they derive from
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden")


@dataclass(frozen=True)
class SystemHeader:
    """A header of the system's that sources include: ``path`` below an include folder.

    ``sdk`` is the variable that names a folder it may be in instead, ``remedy`` what is said where it is missing.
    """

    path: str
    sdk: str
    remedy: str

    def folder(self) -> Path | None:
        """The include folder it is in: an SDK's, or the system's."""
        folders = [Path(os.environ[name]) / "include" for name in (self.sdk,) if name in os.environ]
        folders += [Path("/usr/include"), Path("/usr/local/include")]
        return next((folder for folder in folders if (folder / self.path).is_file()), None)


@dataclass(frozen=True)
class NativeLibrary:
    """The C++ files of a folder, and the library they become; ``target`` is the device kind it registers with TVM."""

    target: str
    folder: Path  # of the sources; a wheel has the library beside them
    header: SystemHeader | None = None

    def load(self) -> None:
        """Registers it with the TVM runtime of this process, once; no device is touched.

        Raises:
            BackendUnavailableError: it is not here and cannot be built.
        """
        _load(self.target, self.find())

    def find(self) -> Path:
        """The library for these sources and the installed TVM, built if nobody has done so yet.

        Raises:
            BackendUnavailableError: it cannot be built, with what is missing and how to get it.
        """
        packaged, cached = self._places()
        if packaged.is_file():
            return packaged
        if not cached.is_file():
            self.build(cached)
        return cached

    def is_built(self) -> bool:
        """Whether ``find`` has nothing to build."""
        return any(path.is_file() for path in self._places())

    def library_name(self) -> str:
        """A name that changes with the sources and what they are compiled against."""
        digest = hashlib.sha256()
        for package in _BUILT_AGAINST:
            digest.update(f"{package} {_version(package)}\n".encode())
        for path in sorted((*self._sources(), *self.folder.glob("*.h"), *_SHARED.glob("*.h"))):
            digest.update(path.name.encode() + b"\n" + path.read_bytes())
        return f"libdspark_{self.target}-{digest.hexdigest()[:12]}.so"

    def missing(self) -> list[str]:
        """What building lacks here, each with how to get it."""
        lacks = []
        if _compiler() is None:
            lacks.append("a C++ compiler (Debian: g++)")
        if self.header is not None and self.header.folder() is None:
            lacks.append(self.header.remedy)
        if any(_headers_of(module) is None for module in ("tvm", "tvm_ffi")):
            lacks.append("TVM's headers (pip install 'dspark-compile[compile]')")
        return lacks

    def build(self, library: Path) -> None:
        """Compiles the library; the file appears whole or not at all.

        Raises:
            BackendUnavailableError: something is missing, or the compiler refuses.
        """
        if lacks := self.missing():
            raise BackendUnavailableError(
                f"--target {self.target}: its runtime cannot be built without {' and '.join(lacks)}"
            )
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as name:
            folder, sources = Path(name), self._sources()
            objects = [folder / f"{source.stem}.o" for source in sources]
            flags = [*_FLAGS, *self._includes()]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                commands = [[*flags, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
                list(pool.map(self._compile, commands))
            linked = folder / library.name
            self._compile(["-shared", "-s", "-o", str(linked), *map(str, objects), "-ldl"])
            os.replace(linked, library)

    def _places(self) -> tuple[Path, Path]:
        """Where it may lie: in the package, or in the user's cache."""
        name = self.library_name()
        return self.folder / name, _cache_folder() / name

    def _sources(self) -> list[Path]:
        return sorted(self.folder.glob("*.cc"))

    def _includes(self) -> Iterator[str]:
        yield f"-I{_SHARED}"
        for module in ("tvm", "tvm_ffi"):
            yield from ("-isystem", str(_headers_of(module)))
        if self.header is not None:
            yield f"-I{self.header.folder()}"  # not -isystem: a folder of the system must keep its place

    def _compile(self, arguments: Sequence[str]) -> None:
        done = subprocess.run([str(_compiler()), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BackendUnavailableError(
                f"--target {self.target}: its runtime does not compile: {lines[0] if lines else 'no message'}"
            )


@functools.cache
def _load(target: str, path: Path) -> ctypes.CDLL:
    import tvm

    if tvm.get_global_func(f"device_api.{target}", allow_missing=True) is not None:
        return ctypes.CDLL(None)  # an artifact brought it
    try:
        return ctypes.CDLL(str(path), ctypes.RTLD_LOCAL)
    except OSError as error:
        raise BackendUnavailableError(f"{path}: cannot be loaded: {error}; remove it to have it built anew") from error


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)


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
