"""AMD's HIP runtime and the GPUs it offers, asked by ctypes: nothing needs to be installed beside it."""

import ctypes
from ctypes import byref, c_char_p, c_int
from dataclasses import dataclass

# Newest first; the last is what development packages have.
_LIBRARIES = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so")
# hipDeviceProp_tR0600, which HIP has had since version 6: where what is read lies, and room for all of it.
_NAME, _MEMORY, _ARCH, _ROOM = 0, 288, 1160, 4096


@dataclass(frozen=True)
class AmdGpu:
    """One GPU; ``arch`` as code is made for it, such as gfx942."""

    name: str
    arch: str
    memory_bytes: int


@dataclass(frozen=True)
class Hip:
    """The runtime's GPUs, in its order; ``problem`` is why there are none."""

    gpus: tuple[AmdGpu, ...]
    problem: str | None = None


def find_hip() -> Hip | None:
    """This machine's; None where none is installed."""
    library = load_hip()
    if library is None:
        return None
    try:
        properties = library.hipGetDevicePropertiesR0600
    except AttributeError:
        return Hip((), "it is older than ROCm 6")
    count = c_int()
    if code := library.hipGetDeviceCount(byref(count)):
        library.hipGetErrorString.restype = c_char_p
        return Hip((), library.hipGetErrorString(code).decode())
    found = []
    for index in range(count.value):
        room = ctypes.create_string_buffer(_ROOM)
        if properties(room, index) == 0:
            memory = ctypes.c_size_t.from_buffer(room, _MEMORY).value
            arch = _text(room, _ARCH).split(":")[0]  # without what may be on or off, as in gfx942:sramecc+:xnack-
            found.append(AmdGpu(_text(room, _NAME), arch, memory))
    return Hip(tuple(found), None if found else "it offers this process no GPU")


def load_hip() -> ctypes.CDLL | None:
    """The runtime's library; None where none is installed."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _text(room: "ctypes.Array[ctypes.c_char]", at: int) -> str:
    return room.raw[at : room.raw.index(b"\0", at)].decode(errors="replace")
