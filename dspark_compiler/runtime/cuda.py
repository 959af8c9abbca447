"""CUDA's runtime library, and what its graphs need beyond what HIP has, too."""

from ctypes import CFUNCTYPE, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cached_property
from typing import Any

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu_library import GpuLibrary

# Constants of driver_types.h.
_KERNEL_NODE, _CARVEOUT, _ATTRIBUTE_WORDS = 0, 14, 16
_DRIVER_API = 12000  # version of the driver's functions
_PARAMS_WORDS, _DYNAMIC_SHARED = 18, 8  # CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h: its size, and where sharedMemBytes lies
_SMALL = 32 * 1024  # bytes of memory of its own choosing with which a kernel still finds room for blocks beside L1
_L1_FIRST = 28  # percent of a multiprocessor's memory for blocks: 64 KB of H100's and H200's 228


class CudaRuntime(GpuLibrary):
    """See GpuRuntime and GpuLibrary."""

    prefix = "cuda"
    more = {  # noqa: RUF012 - a constant of the class
        "GetDriverEntryPointByVersion": (c_char_p, c_void_p, c_uint, c_ulonglong, c_void_p),
        "GraphGetNodes": (c_void_p, c_void_p, c_void_p),
        "GraphNodeGetType": (c_void_p, c_void_p),
        "GraphKernelNodeSetAttribute": (c_void_p, c_int, c_void_p),
    }

    def _prepare(self, graph: int) -> None:
        """Leaves most of a multiprocessor's memory to L1 under kernels that need little of it for their blocks.

        Left to itself a multiprocessor stays divided as the kernel before had it, such as attention, if the next can
        run that way at all; but there all blocks read the same few rows, which L1's least share does not hold. Nor do
        blocks of two kernels share one that would have to be divided anew between them.
        """
        count = c_size_t()
        self._check("GraphGetNodes", graph, None, byref(count))
        nodes = (c_void_p * count.value)()
        self._check("GraphGetNodes", graph, nodes, byref(count))
        for node in filter(None, nodes):
            kind = c_int()
            self._check("GraphNodeGetType", node, byref(kind))
            if kind.value == _KERNEL_NODE and self._dynamic_shared(node) <= _SMALL:
                self._check("GraphKernelNodeSetAttribute", node, _CARVEOUT, (c_uint * _ATTRIBUTE_WORDS)(_L1_FIRST))

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
        self._check("GetDriverEntryPointByVersion", name, byref(found), _DRIVER_API, 0, byref(status))
        return CFUNCTYPE(c_int, c_void_p, c_void_p)(found.value or 0)
