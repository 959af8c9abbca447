"""Activations that are handed over as float16: divided by eight, so that half a million fits.

Products by cooperative matrices round what they read so anyway, as eager float16 does. Handed over so it takes half of
the second-level cache's time, which work groups that bring all of it wait for, and half of the registers. A pair lies
in a word, as which it is published and awaited.
"""

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import publish
from dspark_compiler.schedules.tir import Buffer, Expr

EIGHTHS = "float16"  # of a tensor
UNIT = 8.0  # float16 ends at 65504

_DROPPED = 13  # bits of a float32's that float16 has not
# Bits of float32: its sign, infinity, what float16 rounds to infinity, its least normal number, a half.
_SIGN, _INFINITE, _TOO_LARGE, _LEAST_NORMAL, _HALF = 1 << 31, 0x7F800000, 0x477FF000, 0x38800000, 0x3F000000


def as_eighths(value: Expr) -> Expr:
    """A float32 as it is handed over."""
    return T.cast(value * T.float32(1 / UNIT), EIGHTHS)


def rounded(value: Expr) -> Expr:
    """A float32 as it comes back from eighths; by its bits, since a compiler took what is widened again for itself."""
    eighth = T.Bind(value * T.float32(1 / UNIT))
    bits = T.Bind(T.reinterpret("uint32", eighth))
    sign, size = T.Bind(bits & T.uint32(_SIGN)), T.Bind(bits & T.uint32(_SIGN - 1))
    odd = (size >> T.uint32(_DROPPED)) & T.uint32(1)
    near = (size + (T.uint32((1 << _DROPPED - 1) - 1) + odd)) & T.uint32(_SIGN - (1 << _DROPPED))
    near = T.Select(size >= T.uint32(_TOO_LARGE), T.max(size, T.uint32(_INFINITE)), near)
    # Added to a half, subnormal numbers are rounded to the multiples of 2^-24 that they are.
    units = T.reinterpret("uint32", T.abs(eighth) + T.float32(0.5)) - T.uint32(_HALF)
    least = T.reinterpret("uint32", T.cast(units, "float32") * T.float32(2.0**-24))
    found = T.Select(size < T.uint32(_LEAST_NORMAL), least, near)
    return T.reinterpret("float32", sign | found) * T.float32(UNIT)


def packed(low: Expr, high: Expr) -> Expr:
    """Two float16 as the bits of a float32."""
    words = [T.cast(T.reinterpret("uint16", half), "uint32") for half in (low, high)]
    return T.reinterpret("float32", words[0] | words[1] << T.uint32(16))


def publish_pair(buffer: Buffer, index: list[Expr], low: Expr, high: Expr) -> None:
    """Stores two float32 in eighths where somebody may be asking for them; the first's place is even."""
    publish(buffer, index, packed(*(T.Bind(as_eighths(value)) for value in (low, high))))


@dataclass(frozen=True)
class AskPair:
    """See Question: for two neighbours in eighths, the first's place even, as the bits of target[at]."""

    target: Buffer
    at: tuple[int, ...]
    source: Buffer
    index: tuple[Any, ...]

    def emit(self) -> None:
        """Asks once."""
        *outer, first = self.index
        address = T.address_of(self.source[(*outer, T.ramp(first, 1, 2))])
        pair = T.call_extern(f"{EIGHTHS}x2", "dspark_await", address)
        T.buffer_store(self.target, T.reinterpret("float32", pair), list(self.at))

    def found(self) -> list[Expr]:
        """What has come of it."""
        return [self.target[self.at]]
