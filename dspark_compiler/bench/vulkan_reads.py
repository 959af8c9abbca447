"""How fast kernels of a Vulkan device read its memory: the limit of decoding one sequence there.

Copies are no measure of it: Nvidia's driver copies buffers on a queue that only computes at a quarter of what kernels
read.
"""

import ctypes
import json
import statistics
import struct
from pathlib import Path
from typing import Any

from dspark_compiler.runtime.library import import_tvm_ffi
from dspark_compiler.runtime.vulkan import VulkanRuntime

_KERNEL = Path(__file__).with_name("read.spv")
_BUFFER_BYTES = 1 << 30  # far more than any cache holds
_GROUPS, _THREADS, _PIECE = 4096, 256, 16
_READS = 4


class VulkanReads:
    """Reads one buffer; see CopyBandwidth."""

    def __init__(self, vulkan: VulkanRuntime, device: int, buffer_bytes: int = _BUFFER_BYTES) -> None:
        self._vulkan = vulkan
        self._device = device
        self._pieces = min(buffer_bytes, vulkan.largest) // _PIECE
        self._kernel = _load()
        self._began, self._ended = vulkan.event(timed=True), vulkan.event(timed=True)
        self._rounds: list[float] = []

    @property
    def bytes_per_second(self) -> float:
        """The median of all rounds."""
        return statistics.median(self._rounds)

    def measure(self, times: int = 3) -> float:
        """Reads so many times; returns the best, in bytes a second. The buffer is gone when this returns."""
        vulkan, size = self._vulkan, self._pieces * _PIECE
        import_tvm_ffi().get_global_func("dspark.vulkan.set_device")(self._device)
        buffer = vulkan.allocate(size)
        vulkan.zero(buffer, size, 0)
        best = 0.0
        for _ in range(times):
            vulkan.record(self._began, 0)
            for _ in range(_READS):
                place = ctypes.c_void_p(buffer)
                self._kernel(place, place, self._pieces, _GROUPS, _THREADS)
            vulkan.record(self._ended, 0)
            vulkan.wait(self._ended)
            best = max(best, _READS * size / vulkan.seconds(self._began, self._ended))
        vulkan.release(buffer)
        vulkan.synchronize(0)  # a driver takes 20 ms to take back gigabytes, which are not what is timed next
        self._rounds.append(best)
        return best


def _load() -> Any:
    """The kernel, in the form modules are stored in (``vulkan_runtime/kernel.h``)."""
    code = _KERNEL.read_bytes()
    kernel = {
        "name": "read",
        "offset": 0,
        "bytes": len(code),
        # Nothing is ever written: what is read adds up to zero.
        "args": [
            {"kind": "buffer", "offset": 0, "access": "r"},
            {"kind": "buffer", "offset": 8, "access": "r"},
            {"kind": "scalar", "dtype": "int32", "offset": 16},
        ],
        "block": "push",
        "block_bytes": 20,
        "launch": ["blockIdx.x", "threadIdx.x"],
        "workgroup": [_THREADS, 1, 1],
        "shared_bytes": 0,
        "features": ["int64"],
        "subgroup": 0,
    }
    text = json.dumps({"kernels": [kernel]}).encode()
    head = b"DSPKVK01" + struct.pack("<Q", len(text)) + text
    load = import_tvm_ffi().get_global_func("ffi.Module.load_from_bytes.vulkan")
    return load(head + b"\0" * (-len(head) % 4) + code)["read"]
