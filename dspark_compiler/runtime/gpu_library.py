"""The runtime library of a GPU's maker by ctypes: memory, streams, events and graphs. Every call is checked.

CUDA's and HIP's have the same functions with the same arguments, but for the beginning of their names. Pointers,
streams, events and graphs are integers. Everything asynchronous goes in the order it was put on its stream.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu import Batch, Rows, Transfer, run_in_turn

Signatures = Mapping[str, tuple[Any, ...]]

# Constants of driver_types.h and hip_runtime_api.h.
_HOST_ALLOC_DEFAULT, _COPY_BY_ADDRESS, _STREAM_NON_BLOCKING = 0, 4, 1
_EVENT_TIMED, _EVENT_UNTIMED = 0, 2
_CAPTURE_RELAXED = 2  # other threads, and allocations, are no error while a stream is captured
_OUT_OF_MEMORY = 2

# What each function takes; all return an error's number.
_SIGNATURES: Signatures = {
    "SetDevice": (c_int,),
    "MemGetInfo": (c_void_p, c_void_p),
    "Malloc": (c_void_p, c_size_t),
    "Free": (c_void_p,),
    "HostAlloc": (c_void_p, c_size_t, c_uint),
    "FreeHost": (c_void_p,),
    "MemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "Memcpy2DAsync": (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p),
    "MemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "StreamCreateWithFlags": (c_void_p, c_uint),
    "StreamSynchronize": (c_void_p,),
    "StreamBeginCapture": (c_void_p, c_int),
    "StreamEndCapture": (c_void_p, c_void_p),
    "EventCreateWithFlags": (c_void_p, c_uint),
    "EventRecord": (c_void_p, c_void_p),
    "EventSynchronize": (c_void_p,),
    "EventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "GraphInstantiate": (c_void_p, c_void_p, c_ulonglong),
    "GraphDestroy": (c_void_p,),
    "GraphLaunch": (c_void_p, c_void_p),
    "GraphExecDestroy": (c_void_p,),
    "GetLastError": (),
}


class GpuLibrary:
    """See GpuRuntime; a subclass says whose library it is.

    Attributes:
        prefix: what its functions' names begin with.
        renamed: those that have another name here than after CUDA's.
        more: signatures of functions that others have none of.

    Raises:
        DeviceError: from every method, naming the function that failed and why.
    """

    prefix: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    more: ClassVar[Signatures] = {}

    def __init__(self, library: Any, index: int = 0) -> None:
        """``library`` is as ctypes loads it, ``index`` the number of the GPU."""
        self._index = index
        self._functions: dict[str, Any] = {}
        for name, arguments in {**_SIGNATURES, **self.more}.items():
            self._functions[name] = getattr(library, self._name(name))
            self._functions[name].argtypes = arguments
        self._error_text = getattr(library, self._name("GetErrorString"))
        self._error_text.argtypes, self._error_text.restype = (c_int,), c_char_p

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory that are free, and all of them."""
        self._select()
        free, total = c_size_t(), c_size_t()
        self._check("MemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Memory on the GPU, at a multiple of 256."""
        self._select()
        return self._made("Malloc", size)

    def release(self, address: int) -> None:
        """Gives memory on the GPU back."""
        self._give_back("Free", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Zeroed memory of the host that the GPU reads and writes by itself."""
        self._select()
        address = self._made("HostAlloc", size, _HOST_ALLOC_DEFAULT)
        block = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, self._functions["FreeHost"], address).atexit = False
        array: NDArray[np.uint8] = np.ctypeslib.as_array(block)
        array[:] = 0
        return array

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies bytes, whichever side each address is on."""
        self._check("MemcpyAsync", to, source, size, _COPY_BY_ADDRESS, stream)

    def copy_all(self, copies: Sequence[Transfer], stream: int) -> None:
        """See GpuRuntime."""
        for each in copies:
            self.copy(each.to, each.source, each.size, stream)

    def copy_rows(self, to: Rows, source: Rows, row: int, rows: int, stream: int) -> None:
        """Copies so many rows of ``row`` bytes."""
        self._check(
            "Memcpy2DAsync", to.address, to.pitch, source.address, source.pitch, row, rows, _COPY_BY_ADDRESS, stream
        )

    def zero(self, address: int, size: int, stream: int) -> None:
        """Zeroes memory on the GPU."""
        self._check("MemsetAsync", address, 0, size, stream)

    def stream(self) -> int:
        """A stream that waits for no other."""
        self._select()
        return self._made("StreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Waits until all that is on the stream is done."""
        self._check("StreamSynchronize", stream)

    def event(self, *, timed: bool = False) -> int:
        """A mark to be put on streams; before that, nothing waits for it."""
        self._select()
        return self._made("EventCreateWithFlags", _EVENT_TIMED if timed else _EVENT_UNTIMED)

    def record(self, event: int, stream: int) -> None:
        """Puts the event on the stream."""
        self._check("EventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Waits until the stream has come to where the event was put last."""
        self._check("EventSynchronize", event)

    def seconds(self, first: int, last: int) -> float:
        """Time between two events that have come to pass, both timed."""
        milliseconds = c_float()
        self._check("EventElapsedTime", byref(milliseconds), first, last)
        return milliseconds.value / 1e3

    def begin_capture(self, stream: int) -> None:
        """From now on what is put on the stream is remembered instead of done."""
        self._check("StreamBeginCapture", stream, _CAPTURE_RELAXED)

    def end_capture(self, stream: int) -> int:
        """What was remembered, as a graph that can be launched."""
        graph = self._made("StreamEndCapture", of=stream)
        try:
            self._prepare(graph)
            return self._made("GraphInstantiate", graph, 0)
        finally:
            self._check("GraphDestroy", graph)

    def _prepare(self, graph: int) -> None:
        """What a maker's graphs need before they can be launched."""

    def abandon_capture(self, stream: int) -> None:
        """Ends a capture that failed; the stream can be used again."""
        self._functions["StreamEndCapture"](stream, byref(c_void_p()))
        self._functions["GetLastError"]()

    def launch(self, graph: int, stream: int) -> None:
        """Puts all of a graph on the stream."""
        self._check("GraphLaunch", graph, stream)

    def run(self, batch: Batch, stream: int) -> None:
        """See GpuRuntime."""
        run_in_turn(self, batch, stream)

    def destroy(self, graph: int) -> None:
        """Gives a graph's memory back; what was launched of it still ends."""
        self._give_back("GraphExecDestroy", graph)

    def _give_back(self, name: str, handle: int) -> None:
        """Finalizers do that, when there is nobody to tell: a GPU that is lost has nothing of ours any more."""
        if self._functions[name](handle):
            self._functions["GetLastError"]()

    def _select(self) -> None:
        """Has this thread make things on our GPU; what was made knows where it belongs."""
        self._check("SetDevice", self._index)

    def _made(self, name: str, *arguments: Any, of: int | None = None) -> int:
        """What the function gives by its first argument; ``of`` comes before that."""
        result = c_void_p()
        before = () if of is None else (of,)
        self._check(name, *before, byref(result), *arguments)
        return result.value or 0

    def _check(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            self._functions["GetLastError"]()  # or it comes up again with the next call
            text = self._error_text(code).decode()
            hint = ""
            if code == _OUT_OF_MEMORY:
                free, total = self.memory()
                hint = f"; {free / 1e9:.2f} of {total / 1e9:.2f} GB are free"
            raise DeviceError(f"{self._name(name)}: {text} (error {code}){hint}")

    def _name(self, name: str) -> str:
        return self.prefix + self.renamed.get(name, name)
