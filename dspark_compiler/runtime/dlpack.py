"""Tensors over memory of our own, by the structures of dlpack.h (version 0.8).

They own nothing: whoever makes one keeps the memory as long as it is used.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint64, c_void_p, py_object
from typing import Any

from dspark_compiler.runtime.library import import_tvm_ffi


class _Tensor(ctypes.Structure):
    """DLManagedTensor; strides and owner are absent."""

    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("byte_offset", c_uint64),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
    )


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = py_object
_new_capsule.argtypes = (c_void_p, c_char_p, c_void_p)


class Wrapping:
    """A dense tensor of this shape and type at an address of a device (DLPack's type and number).

    Attributes:
        tensor: as compiled code takes it.
    """

    def __init__(self, address: int, shape: Sequence[int], dtype: str, device: tuple[int, int]) -> None:
        tvm_ffi = import_tvm_ffi()
        kind = tvm_ffi.dtype(dtype)
        self._device = device
        # The tensor may outlive this object and look at what describes it when it goes: C's heap holds that, and the
        # tensor itself gives it back.
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = (c_size_t,), c_void_p
        described = libc.malloc(ctypes.sizeof(_Tensor) + max(len(shape), 1) * ctypes.sizeof(c_int64))
        lengths = described + ctypes.sizeof(_Tensor)
        (c_int64 * len(shape)).from_address(lengths)[:] = list(shape)
        free = ctypes.cast(libc.free, c_void_p).value
        code = (kind.type_code, kind.bits, kind.lanes)
        managed = _Tensor(address, *device, len(shape), *code, lengths, None, 0, None, free)
        ctypes.memmove(described, ctypes.byref(managed), ctypes.sizeof(_Tensor))
        self._described = described
        self.tensor: Any = tvm_ffi.from_dlpack(self)

    def __dlpack__(self, **_: Any) -> object:
        return _new_capsule(self._described, b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device
