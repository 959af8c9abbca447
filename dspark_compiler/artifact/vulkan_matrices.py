"""Whether a Vulkan device multiplies matrices as our kernels do: those of VK_KHR_cooperative_matrix."""

import ctypes
from ctypes import byref, c_char, c_char_p, c_int32, c_uint32, c_void_p
from typing import Any

_EXTENSION, _QUESTION = b"VK_KHR_cooperative_matrix", b"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
_PROPERTIES = 1000506001  # VkStructureType
_SIDE, _FLOAT16, _FLOAT32, _SUBGROUP = 16, 0, 1, 3
_WANTED = (_SIDE, _SIDE, _SIDE, _FLOAT16, _FLOAT16, _FLOAT32, _FLOAT32)
_ENUMERATE = ctypes.CFUNCTYPE(c_int32, c_void_p, c_char_p, c_void_p, c_void_p)
_ASK = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p)


class _Extension(ctypes.Structure):
    _fields_ = (("name", c_char * 256), ("version", c_uint32))


class _Shape(ctypes.Structure):
    # values: rows, columns and depth, then the types of A, B, C and the result.
    _fields_ = (
        *(("sType", c_int32), ("pNext", c_void_p), ("values", c_uint32 * 7)),
        *(("saturating", c_uint32), ("scope", c_uint32)),
    )


def multiplies_matrices(library: ctypes.CDLL, instance: Any, handle: int) -> bool:
    """Whether a subgroup multiplies 16 x 16 numbers of float16 by as many and sums up in float32."""
    library.vkGetInstanceProcAddr.restype = c_void_p
    library.vkGetInstanceProcAddr.argtypes = (c_void_p, c_char_p)
    extensions_of = _ENUMERATE(library.vkGetInstanceProcAddr(instance, b"vkEnumerateDeviceExtensionProperties"))
    count = c_uint32()
    extensions_of(handle, None, byref(count), None)
    extensions = (_Extension * count.value)()
    extensions_of(handle, None, byref(count), extensions)
    address = library.vkGetInstanceProcAddr(instance, _QUESTION)
    if not address or all(extension.name != _EXTENSION for extension in extensions):
        return False
    shapes_of = _ASK(address)
    if shapes_of(handle, byref(count), None):
        return False
    shapes = (_Shape * count.value)(*(_Shape(_PROPERTIES) for _ in range(count.value)))
    if shapes_of(handle, byref(count), shapes):
        return False
    return any(tuple(shape.values) == _WANTED and shape.scope == _SUBGROUP for shape in shapes[: count.value])
