"""CUDA's runtime library by ctypes: memory, streams, events and graphs. Every call is checked.

Pointers, streams, events and graphs are integers. Everything asynchronous goes in the order it was put on its stream.
"""

import ctypes
import weakref
from ctypes import CFUNCTYPE, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu import Rows

# Constants of driver_types.h.
_HOST_ALLOC_DEFAULT, _COPY_BY_ADDRESS, _STREAM_NON_BLOCKING = 0, 4, 1
_EVENT_TIMED, _EVENT_UNTIMED = 0, 2
_CAPTURE_RELAXED = 2  # other threads, and allocations, are no error while a stream is captured
_OUT_OF_MEMORY = 2
_KERNEL_NODE, _CARVEOUT, _ATTRIBUTE_WORDS = 0, 14, 16
_DRIVER_API = 12000  # version of the driver's functions
_PARAMS_WORDS, _DYNAMIC_SHARED = 18, 8  # CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h: its size, and where sharedMemBytes lies
_L1_FIRST = 28  # percent of a multiprocessor's memory for blocks: 64 KB of H100's and H200's 228

# What each function takes; all return cudaError_t.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaSetDevice": (c_int,),
    "cudaMemGetInfo": (c_void_p, c_void_p),
    "cudaMalloc": (c_void_p, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (c_void_p, c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemcpy2DAsync": (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p),
    "cudaMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "cudaStreamCreateWithFlags": (c_void_p, c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, c_void_p),
    "cudaEventCreateWithFlags": (c_void_p, c_uint),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cudaGetDriverEntryPointByVersion": (c_char_p, c_void_p, c_uint, c_ulonglong, c_void_p),
    "cudaGraphGetNodes": (c_void_p, c_void_p, c_void_p),
    "cudaGraphNodeGetType": (c_void_p, c_void_p),
    "cudaGraphKernelNodeSetAttribute": (c_void_p, c_int, c_void_p),
    "cudaGraphInstantiate": (c_void_p, c_void_p, c_ulonglong),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
}


class CudaRuntime:
    """See GpuRuntime.

    Raises:
        DeviceError: from every method, naming the function that failed and why.
    """

    def __init__(self, library: Any, index: int = 0) -> None:
        """``library`` is CUDA's runtime as ctypes loads it, ``index`` the number of the GPU."""
        self._library = library
        self._index = index
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        library.cudaGetErrorString.restype = c_char_p

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory that are free, and all of them."""
        self._select()
        free, total = c_size_t(), c_size_t()
        self._check("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Memory on the GPU, at a multiple of 256."""
        self._select()
        return self._made("cudaMalloc", size)

    def release(self, address: int) -> None:
        """Gives memory on the GPU back."""
        self._check("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Zeroed memory of the host that the GPU reads and writes by itself."""
        self._select()
        address = self._made("cudaHostAlloc", size, _HOST_ALLOC_DEFAULT)
        block = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, self._library.cudaFreeHost, address).atexit = False
        array: NDArray[np.uint8] = np.ctypeslib.as_array(block)
        array[:] = 0
        return array

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies bytes, whichever side each address is on."""
        self._check("cudaMemcpyAsync", to, source, size, _COPY_BY_ADDRESS, stream)

    def copy_rows(self, to: Rows, source: Rows, row: int, rows: int, stream: int) -> None:
        """Copies so many rows of ``row`` bytes."""
        self._check(
            "cudaMemcpy2DAsync", to.address, to.pitch, source.address, source.pitch, row, rows, _COPY_BY_ADDRESS, stream
        )

    def zero(self, address: int, size: int, stream: int) -> None:
        """Zeroes memory on the GPU."""
        self._check("cudaMemsetAsync", address, 0, size, stream)

    def stream(self) -> int:
        """A stream that waits for no other."""
        self._select()
        return self._made("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Waits until all that is on the stream is done."""
        self._check("cudaStreamSynchronize", stream)

    def event(self, *, timed: bool = False) -> int:
        """A mark to be put on streams; before that, nothing waits for it."""
        self._select()
        return self._made("cudaEventCreateWithFlags", _EVENT_TIMED if timed else _EVENT_UNTIMED)

    def record(self, event: int, stream: int) -> None:
        """Puts the event on the stream."""
        self._check("cudaEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Waits until the stream has come to where the event was put last."""
        self._check("cudaEventSynchronize", event)

    def seconds(self, first: int, last: int) -> float:
        """Time between two events that have come to pass, both timed."""
        milliseconds = c_float()
        self._check("cudaEventElapsedTime", byref(milliseconds), first, last)
        return milliseconds.value / 1e3

    def begin_capture(self, stream: int) -> None:
        """From now on what is put on the stream is remembered instead of done."""
        self._check("cudaStreamBeginCapture", stream, _CAPTURE_RELAXED)

    def end_capture(self, stream: int) -> int:
        """What was remembered, as a graph that can be launched."""
        graph = self._made("cudaStreamEndCapture", of=stream)
        try:
            self._leave_l1(graph)
            return self._made("cudaGraphInstantiate", graph, 0)
        finally:
            self._check("cudaGraphDestroy", graph)

    def _leave_l1(self, graph: int) -> None:
        """Leaves most of a multiprocessor's memory to L1 under kernels that need little of it for their blocks.

        Left to itself a multiprocessor stays divided as the kernel before had it, such as attention, if the next can
        run that way at all; but there all blocks read the same few rows, which L1's least share does not hold.
        """
        count = c_size_t()
        self._check("cudaGraphGetNodes", graph, None, byref(count))
        nodes = (c_void_p * count.value)()
        self._check("cudaGraphGetNodes", graph, nodes, byref(count))
        for node in filter(None, nodes):
            kind = c_int()
            self._check("cudaGraphNodeGetType", node, byref(kind))
            if kind.value == _KERNEL_NODE and not self._dynamic_shared(node):
                self._check("cudaGraphKernelNodeSetAttribute", node, _CARVEOUT, (c_uint * _ATTRIBUTE_WORDS)(_L1_FIRST))

    def _dynamic_shared(self, node: int) -> int:
        """Bytes of shared memory a launch gives each block; of other kernels than its own the runtime cannot tell."""
        params = (c_uint * _PARAMS_WORDS)()
        code = self._kernel_params(node, params)
        if code:
            raise DeviceError(f"cuGraphKernelNodeGetParams: error {code}")
        return params[_DYNAMIC_SHARED]

    @cached_property
    def _kernel_params(self) -> Any:
        """The driver's cuGraphKernelNodeGetParams."""
        found, status = c_void_p(), c_int()
        name = b"cuGraphKernelNodeGetParams"
        self._check("cudaGetDriverEntryPointByVersion", name, byref(found), _DRIVER_API, 0, byref(status))
        return CFUNCTYPE(c_int, c_void_p, c_void_p)(found.value or 0)

    def abandon_capture(self, stream: int) -> None:
        """Ends a capture that failed; the stream can be used again."""
        self._library.cudaStreamEndCapture(stream, byref(c_void_p()))
        self._library.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Puts all of a graph on the stream."""
        self._check("cudaGraphLaunch", graph, stream)

    def destroy(self, graph: int) -> None:
        """Gives a graph's memory back; what was launched of it still ends."""
        self._check("cudaGraphExecDestroy", graph)

    def _select(self) -> None:
        """Has this thread make things on our GPU; what was made knows where it belongs."""
        self._check("cudaSetDevice", self._index)

    def _made(self, name: str, *arguments: Any, of: int | None = None) -> int:
        """What the function gives by its first argument; ``of`` comes before that."""
        result = c_void_p()
        before = () if of is None else (of,)
        self._check(name, *before, byref(result), *arguments)
        return result.value or 0

    def _check(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            self._library.cudaGetLastError()  # or it comes up again with the next call
            text = self._library.cudaGetErrorString(code).decode()
            hint = ""
            if code == _OUT_OF_MEMORY:
                free, total = self.memory()
                hint = f"; {free / 1e9:.2f} of {total / 1e9:.2f} GB are free"
            raise DeviceError(f"{name}: {text} (error {code}){hint}")
