"""Our Vulkan library's functions as running on a GPU needs them; the library is loaded.

A device has one stream, whatever number is given for it, and its events are values of one timeline.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu import Batch, Rows, Transfer
from dspark_compiler.runtime.library import import_tvm_ffi

_STREAM = 0


class VulkanRuntime:
    """See GpuRuntime; the Vulkan device of this number.

    Attributes:
        largest: bytes that one allocation can have.

    Raises:
        DeviceError: it cannot be used.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._allocate = self._function("allocate")
        self._release = self._function("release")
        self._allocate_host = self._function("allocate_host")
        self._copy = self._function("copy")
        self._copy_all = self._function("copy_all")
        self._copy_rows = self._function("copy_rows")
        self._zero = self._function("zero")
        self._mark = self._function("mark")
        self._wait = self._function("wait")
        self._replay = self._function("replay")
        self._run = self._function("run")
        self._memory = self._function("memory")
        self._marks: list[int] = []
        self._reached = 0  # the latest mark that was waited for
        self._stamps: dict[int, int] = {}  # by event, those that are timed
        self.largest: int = self._function("max_allocation")()

    def _function(self, name: str) -> Callable[..., Any]:
        """One of the library's, on this device."""
        function, index = import_tvm_ffi().get_global_func(f"dspark.vulkan.{name}", allow_missing=True), self._index
        if function is None:
            raise DeviceError(f"the artifact's Vulkan library is of an older version, without {name}; compile again")

        def call(*arguments: Any) -> Any:
            try:
                return function(index, *arguments)
            except RuntimeError as error:
                raise DeviceError(str(error).strip().splitlines()[-1]) from error

        return call

    def memory(self) -> tuple[int, int]:
        """See GpuRuntime; free as far as the driver says."""
        free, total, _ = self._memory()
        return free, total

    def peak_memory_bytes(self) -> int:
        """The most memory that was ever taken on the device, by TVM's allocator, too."""
        return int(self._memory()[2])

    def given_back(self) -> int:
        """How often TVM's allocator has given memory back, which recordings may have the addresses of."""
        return int(self._function("frees")())

    def allocate(self, size: int) -> int:
        """See GpuRuntime."""
        return int(self._allocate(size))

    def release(self, address: int) -> None:
        """See GpuRuntime; what was put on the stream before may still use it."""
        self._release(address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """See GpuRuntime."""
        address = self._allocate_host(size)
        block = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, self._release, address).atexit = False
        array: NDArray[np.uint8] = np.ctypeslib.as_array(block)
        array[:] = 0
        return array

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """See GpuRuntime."""
        self._copy(to, source, size)

    def copy_all(self, copies: Sequence[Transfer], stream: int) -> None:
        """See GpuRuntime."""
        self._copy_all([*chain.from_iterable(copies)])

    def copy_rows(self, to: Rows, source: Rows, row: int, rows: int, stream: int) -> None:
        """See GpuRuntime."""
        self._copy_rows(to.address, to.pitch, source.address, source.pitch, row, rows)

    def zero(self, address: int, size: int, stream: int) -> None:
        """See GpuRuntime."""
        self._zero(address, size)

    def stream(self) -> int:
        """See GpuRuntime."""
        return _STREAM

    def synchronize(self, stream: int) -> None:
        """See GpuRuntime."""
        self._wait(self._mark())

    def event(self, *, timed: bool = False) -> int:
        """See GpuRuntime."""
        self._marks.append(0)
        event = len(self._marks) - 1
        if timed:
            self._stamps[event] = 0
        return event

    def record(self, event: int, stream: int) -> None:
        """See GpuRuntime."""
        if event in self._stamps:
            self._stamps[event] = self._function("stamp")()
        self._marks[event] = self._mark()

    def seconds(self, first: int, last: int) -> float:
        """See GpuRuntime; the last 64 times anything was timed are remembered."""
        return float(self._function("seconds")(self._stamps[first], self._stamps[last]))

    def wait(self, event: int) -> None:
        """See GpuRuntime."""
        if self._marks[event] > self._reached:
            self._wait(self._marks[event])
            self._reached = max(self._reached, self._marks[event])

    def begin_capture(self, stream: int) -> None:
        """See GpuRuntime."""
        self._function("begin_recording")()

    def end_capture(self, stream: int) -> int:
        """See GpuRuntime; what was compiled for it goes to the user's cache."""
        graph = int(self._function("end_recording")())
        self._function("save_pipelines")()
        return graph

    def abandon_capture(self, stream: int) -> None:
        """See GpuRuntime."""
        self._function("abandon_recording")()

    def launch(self, graph: int, stream: int) -> None:
        """See GpuRuntime."""
        self._replay(graph)

    def run(self, batch: Batch, stream: int) -> None:
        """See GpuRuntime."""
        before, after = [*chain.from_iterable(batch.before)], [*chain.from_iterable(batch.after)]
        mark = self._run(before, batch.graph or 0, after)
        for event in batch.events:
            self._marks[event] = mark

    def destroy(self, graph: int) -> None:
        """See GpuRuntime."""
        self._function("forget")(graph)
