"""Passes over a row of any length, a few vectors at a time: what sampling does to a vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Buffer, Expr, local, vector

_VECTORS = 4  # taken together: one sum alone would wait for its own last addition


@dataclass(frozen=True)
class Reduction:
    """How values become one: what it starts with, and the type it is kept in."""

    start: float
    dtype: str
    combine: Callable[[Expr, Expr], Expr]


def _plus(a: Expr, b: Expr) -> Any:
    return a + b


MAXIMUM = Reduction(-3.4028234663852886e38, "float32", T.max)
FIRST = Reduction(2**31 - 1, "int32", T.min)
COUNT = Reduction(0, "int32", _plus)
SUM = Reduction(0.0, "float64", _plus)


@dataclass(frozen=True)
class RowSweep:
    """Emits passes over the elements 0..extent of a row."""

    extent: int
    isa: VectorIsa

    def each(self, emit: Callable[[Expr], None]) -> None:
        """Calls emit with the index of each element, within vector loops but for the last few."""
        lanes = self.isa.lanes
        with T.serial(0, self.extent // lanes) as chunk, vector(lanes) as lane:
            emit(chunk * lanes + lane)
        if rest := self.extent % lanes:
            with T.serial(0, rest) as i:
                emit(self.extent - rest + i)

    def reduce(self, how: Reduction, value: Callable[[Expr], Expr]) -> Expr:
        """value(0), value(1), … made one."""
        return self.reduce_part(how, T.int32(0), self.extent, value)

    def reduce_part(self, how: Reduction, first: Expr, extent: int, value: Callable[[Expr], Expr]) -> Expr:
        """value(first), … of ``extent`` elements made one."""
        lanes = self.isa.lanes * _VECTORS
        sums, result = local(lanes, how.dtype), local(1, how.dtype)
        start = getattr(T, how.dtype)(how.start)
        with vector(lanes) as lane:
            T.buffer_store(sums, start, [lane])
        with T.serial(0, extent // lanes) as chunk, vector(lanes) as lane:
            T.buffer_store(sums, how.combine(sums[lane], value(first + chunk * lanes + lane)), [lane])
        T.buffer_store(result, start, [0])
        with T.serial(0, lanes) as lane:
            T.buffer_store(result, how.combine(result[0], sums[lane]), [0])
        if rest := extent % lanes:
            with T.serial(0, rest) as i:
                T.buffer_store(result, how.combine(result[0], value(first + (extent - rest) + i)), [0])
        return T.Bind(result[0])


def float64(value: Expr) -> Expr:
    """A cast, in which sums are kept."""
    return T.cast(value, "float64")


def variable(value: Expr, dtype: str) -> Buffer:
    """A place for one number that changes."""
    place = local(1, dtype)
    T.buffer_store(place, value, [0])
    return place
