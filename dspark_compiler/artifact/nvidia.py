"""Nvidia's driver and the GPUs it offers, asked through its own library: nothing needs to be installed beside it."""

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass

_NAME_BYTES = 128
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """One GPU; ``capability`` as in (9, 0)."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver: the CUDA it can serve, as in (13, 0), and the GPUs this process may use.

    ``problem`` is why there are none, in the driver's words.
    """

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    problem: str | None = None


def find_driver() -> Driver | None:
    """This machine's; None where none is installed."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        library.cuDeviceTotalMem_v2.argtypes = (c_void_p, c_int)
    except (OSError, AttributeError):
        return None
    version, count = c_int(), c_int()
    library.cuDriverGetVersion(byref(version))
    code = library.cuInit(c_uint(0)) or library.cuDeviceGetCount(byref(count))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Driver(cuda, tuple(_gpu(library, i) for i in range(count.value)), _text(library, code) if code else None)


def _text(library: ctypes.CDLL, code: int) -> str:
    text = c_char_p()
    library.cuGetErrorString(code, byref(text))
    return (text.value or f"error {code}".encode()).decode()


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor, memory = c_int(), c_int(), c_int(), c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    library.cuDeviceGet(byref(device), index)
    library.cuDeviceGetName(name, _NAME_BYTES, device)
    library.cuDeviceGetAttribute(byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(byref(minor), _MINOR, device)
    library.cuDeviceTotalMem_v2(byref(memory), device)
    return Gpu(name.value.decode(), (major.value, minor.value), memory.value)


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for "sm_90a" or its like runs on a GPU of this capability.

    Code with a suffix runs on no other capability; plain code also on later ones of the same generation (CUDA C++
    Programming Guide, "Compute capability": binary compatibility).
    """
    digits = arch.removeprefix("sm_").rstrip("abcdefghijklmnopqrstuvwxyz")
    major, minor = int(digits[:-1]), int(digits[-1])
    if not arch[-1].isdigit():
        return capability == (major, minor)
    return capability[0] == major and capability[1] >= minor
