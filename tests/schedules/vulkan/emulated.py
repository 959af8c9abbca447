"""Cooperative matrices by their definition, for devices that have none.

An invocation has eight sums of each matrix, side by side; factors stay where they were loaded from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import barrier, registers
from dspark_compiler.schedules.vulkan.matrices import SIDE, SUBGROUP, Matrices

_OWN = SIDE * SIDE // SUBGROUP


@dataclass
class Factors:
    """Where each matrix lies: buffer, first number, distance of lines."""

    places: dict[int, tuple[Any, Any, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Emulated(Matrices):
    """The same for work groups of ``threads``."""

    threads: int

    def left(self, count: int) -> Factors:
        return Factors()

    def right(self, count: int) -> Factors:
        return Factors()

    def sums(self, count: int) -> Any:
        sums = registers((count, _OWN))
        for number in range(count):
            for e in range(_OWN):
                T.buffer_store(sums, T.float32(0.0), [number, e])
        return sums

    def load(self, target: Any, number: int, tile: Any, start: Any, stride: int) -> None:
        target.places[number] = (tile, T.Bind(start), stride)

    def multiply(self, sums: Any, number: int, left: Any, i: int, right: Any, j: int) -> None:
        (x, row, x_stride), (w, column, w_stride) = left.places[i], right.places[j]
        with self._own() as (own, first), T.serial(0, SIDE) as k:
            factor = T.Bind(T.cast(x[row + own * x_stride + k], "float32"))
            for e in range(_OWN):
                other = T.cast(w[column + (first + e) * w_stride + k], "float32")
                T.buffer_store(sums, T.fma(factor, other, sums[number, e]), [number, e])

    def store(self, tile: Any, start: Any, stride: int, sums: Any, number: int) -> None:
        with self._own() as (own, first):
            for e in range(_OWN):
                T.buffer_store(tile, sums[number, e], [start + own * stride + first + e])

    def meet(self) -> None:
        barrier()  # this device's subgroups are of another size

    @contextmanager
    def _own(self) -> Iterator[tuple[Any, Any]]:
        """Row and first column of an invocation's sums."""
        with T.launch_thread("threadIdx.x", self.threads) as thread:
            lane = thread % SUBGROUP
            yield T.Bind(lane * _OWN // SIDE), T.Bind(lane * _OWN % SIDE)
