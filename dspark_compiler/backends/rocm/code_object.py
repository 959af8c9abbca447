"""What a code object says of its kernels (LLVM, "User Guide for AMDGPU Backend", Code Object Metadata)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dspark_compiler.backends.rocm.messagepack import unpack

_ELF, _MACHINE = b"\x7fELF\x02\x01", 224  # 64 bits, little endian; EM_AMDGPU
_NOTE_SEGMENT, _METADATA_NOTE = 4, 32


@dataclass(frozen=True)
class KernelArgument:
    """Where an argument lies among the others, in bytes; ``kind`` in the metadata's words."""

    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class KernelInfo:
    """A kernel and what it takes of a compute unit.

    Attributes:
        arguments: those it is called with, in order; what HIP adds is left out.
        argument_bytes: of these.
        most_threads: of a work group.
        shared_bytes: of local memory, a work group.
        scratch_bytes: of memory in place of registers, a thread.
        vector_registers: a thread, ``scalar_registers`` a wave, and of each how often one was spilled to memory.
    """

    name: str
    arguments: tuple[KernelArgument, ...]
    argument_bytes: int
    most_threads: int
    wave: int
    shared_bytes: int
    scratch_bytes: int
    vector_registers: int
    scalar_registers: int
    vector_spills: int
    scalar_spills: int


def read_kernels(code: bytes) -> dict[str, KernelInfo]:
    """The kernels of a code object by name.

    Raises:
        ValueError: it is none.
    """
    if code[:6] != _ELF or struct.unpack_from("<H", code, 18) != (_MACHINE,):
        raise ValueError("no code object for AMD's GPUs")
    found = next((unpack(text) for kind, text in _notes(code) if kind == _METADATA_NOTE), None)
    if found is None:
        raise ValueError("a code object without metadata")
    kernels = (_kernel(entry) for entry in found["amdhsa.kernels"])
    return {kernel.name: kernel for kernel in kernels}


def _notes(code: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each note."""
    (table,) = struct.unpack_from("<Q", code, 32)
    size, count = struct.unpack_from("<HH", code, 54)
    for number in range(count):
        kind, _, begin, _, _, length = struct.unpack_from("<IIQQQQ", code, table + number * size)
        if kind != _NOTE_SEGMENT:
            continue
        at = begin
        while at < begin + length:
            name_bytes, text_bytes, note = struct.unpack_from("<III", code, at)
            at += 12 + _aligned(name_bytes)
            yield note, code[at : at + text_bytes]
            at += _aligned(text_bytes)


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def _kernel(entry: dict[str, Any]) -> KernelInfo:
    given = [arg for arg in entry.get(".args", []) if not arg[".value_kind"].startswith("hidden_")]
    arguments = tuple(KernelArgument(arg[".offset"], arg[".size"], arg[".value_kind"]) for arg in given)
    return KernelInfo(
        name=entry[".name"],
        arguments=arguments,
        argument_bytes=max((arg.offset + arg.size for arg in arguments), default=0),
        most_threads=entry[".max_flat_workgroup_size"],
        wave=entry[".wavefront_size"],
        shared_bytes=entry[".group_segment_fixed_size"],
        scratch_bytes=entry[".private_segment_fixed_size"],
        vector_registers=entry[".vgpr_count"],
        scalar_registers=entry[".sgpr_count"],
        vector_spills=entry.get(".vgpr_spill_count", 0),
        scalar_spills=entry.get(".sgpr_spill_count", 0),
    )
