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


def as_eighths(value: Expr) -> Expr:
    """A float32 as it is handed over."""
    return T.cast(value * T.float32(1 / UNIT), EIGHTHS)


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
