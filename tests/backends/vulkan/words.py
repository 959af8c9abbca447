"""The instructions of a shader, for what tools of the day do not know yet."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = 5  # words


@dataclass(frozen=True)
class Instruction:
    """Its number and its operands, results among them."""

    op: int
    operands: tuple[int, ...]


def instructions(code: bytes) -> Iterator[Instruction]:
    """All of a module, in order."""
    words = struct.unpack(f"<{len(code) // 4}I", code)
    at = _HEADER
    while at < len(words):
        count, op = words[at] >> 16, words[at] & 0xFFFF
        yield Instruction(op, words[at + 1 : at + count])
        at += count
    assert at == len(words)


def text_of(words: tuple[int, ...]) -> str:
    """A string among operands."""
    return struct.pack(f"<{len(words)}I", *words).split(b"\0")[0].decode()
