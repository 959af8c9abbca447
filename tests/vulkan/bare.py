"""A process that has TVM's runtime and ours, and nothing else: as one that runs an artifact."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dspark_compiler.runtime.library import import_tvm_ffi
from dspark_compiler.vulkan_runtime import library
from tests.vulkan.device import environment, function, need_assembler
from tests.vulkan.kernels import THREADS, groups

SIZE = 1000


def start() -> None:
    """Loads the libraries."""
    import_tvm_ffi()
    spec = importlib.util.find_spec("tvm")
    assert spec is not None
    assert spec.origin is not None
    ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library.find()))


class Floats:
    """SIZE floats on a device, and as many on the host beside them."""

    def __init__(self, device: int, values: Any) -> None:
        self.device = device
        self.address = function("allocate")(device, 4 * SIZE)
        self._host = function("allocate_host")(device, 4 * SIZE)
        self._view = np.ctypeslib.as_array((ctypes.c_float * SIZE).from_address(self._host))
        self._view[:] = values
        function("copy")(device, self.address, self._host, 4 * SIZE)
        function("synchronize")(device)

    def read(self) -> np.ndarray:
        """What the device has now."""
        function("copy")(self.device, self._host, self.address, 4 * SIZE)
        function("synchronize")(self.device)
        return self._view.copy()


def run(kernel: Any, x: Floats, y: Floats, a: float) -> None:
    """y += a * x."""
    function("set_device")(x.device)
    kernel(ctypes.c_void_p(x.address), ctypes.c_void_p(y.address), a, SIZE, groups(SIZE), THREADS)


def process(program: str, *arguments: object, **variables: str) -> list[str]:
    """Runs a program that begins with all of this; returns its lines.

    Whatever the validation layers find, at the very end, too, is on stderr, which must be empty. The test is skipped
    where the kernel that every program has cannot be assembled.
    """
    need_assembler()
    done = subprocess.run(
        [sys.executable, "-c", _START + program, *map(str, arguments)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


_START = """
import sys
from pathlib import Path
import numpy as np
from tests.vulkan.bare import Floats, SIZE, run, start
from tests.vulkan.device import function
from tests.vulkan.kernels import axpy, described, load
start()
x = np.arange(SIZE, dtype=np.float32)
kernel = load((described(), axpy()))["axpy"]
"""
