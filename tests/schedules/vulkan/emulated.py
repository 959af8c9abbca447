"""Cooperative matrices by their definition, for devices that have none.

An invocation has some sums of each matrix, side by side; factors stay where they were loaded from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import TEAM, barrier, registers, shared
from dspark_compiler.schedules.vulkan.matrices import SIDE, SUBGROUP, Matrices


@dataclass
class Factors:
    """Of each matrix, how to find number k of a line."""

    places: Any = None  # of those out of weights: row and column, which change as a loop goes on
    kept: Any = None  # of left ones: the numbers of an invocation's row
    find: dict[int, Callable[[Any, Any], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Emulated(Matrices):
    """The same for work groups of ``threads``.

    ``keeps``: what left ones were loaded from may be written before they are multiplied; of these an invocation keeps
    the row that is its sums'.
    """

    threads: int
    columns: int = SIDE
    keeps: bool = False

    @property
    def _count(self) -> int:
        """Sums of a matrix that an invocation has."""
        return SIDE * self.columns // SUBGROUP

    def left(self, count: int) -> Factors:
        return Factors(registers((count, 2), "int32"), registers((count, SIDE)) if self.keeps else None)

    def right(self, count: int) -> Factors:
        return Factors()

    def sums(self, count: int) -> Any:
        sums = registers((count, self._count))
        for number in range(count):
            for e in range(self._count):
                T.buffer_store(sums, T.float32(0.0), [number, e])
        return sums

    def load(self, target: Any, number: int, tile: Any, start: Any, stride: int) -> None:
        start, packed = T.Bind(start), tile.dtype == "float32"  # pairs of float16

        def find(line: Any, k: Any) -> Any:
            if not packed:
                return T.cast(tile[start + line * stride + k], "float32")
            word = T.reinterpret("uint32", tile[start + line * stride + k // 2])
            half = T.cast(word >> T.cast(k % 2 * 16, "uint32") & T.uint32(0xFFFF), "uint16")
            return T.cast(T.reinterpret("float16", half), "float32")

        if target.kept is None:
            target.find[number] = find
            return
        with self._own() as (own, _), T.serial(0, SIDE) as k:
            T.buffer_store(target.kept, find(own, k), [number, k])
        target.find[number] = lambda _, k: target.kept[number, k]

    def load_tile(self, target: Any, number: int, stored: Any, row: Any, column: Any) -> None:
        T.buffer_store(target.places, row, [number, 0])
        T.buffer_store(target.places, column, [number, 1])

        def find(line: Any, k: Any) -> Any:
            first, across = target.places[number, 0], target.places[number, 1]
            return T.cast(stored[first, across * SIDE + line * SIDE + k], "float32")

        target.find[number] = find

    def multiply(self, sums: Any, number: int, left: Any, i: int, right: Any, j: int) -> None:
        with self._own() as (own, first), T.serial(0, SIDE) as k:
            factor = T.Bind(left.find[i](own, k))
            for e in range(self._count):
                other = right.find[j](first + e, k)
                T.buffer_store(sums, T.fma(factor, other, sums[number, e]), [number, e])

    def add(self, sums: Any, number: int, other: int) -> None:
        for e in range(self._count):
            T.buffer_store(sums, sums[number, e] + sums[other, e], [number, e])

    def store(self, tile: Any, start: Any, stride: int, sums: Any, number: int) -> None:
        with self._own() as (own, first):
            for e in range(self._count):
                T.buffer_store(tile, sums[number, e], [start + own * stride + first + e])

    def over_teams(self, value: Any) -> Any:
        values = shared(self.threads)
        with T.launch_thread("threadIdx.x", self.threads) as thread:
            T.buffer_store(values, value, [thread])
            barrier()
            first = T.Bind(thread - thread % SUBGROUP + thread % TEAM)
            total = values[first]
            for team in range(1, SUBGROUP // TEAM):
                total = total + values[first + team * TEAM]
            return T.Bind(total)

    def meet(self) -> None:
        barrier()  # this device's subgroups are of another size

    @contextmanager
    def _own(self) -> Iterator[tuple[Any, Any]]:
        """Row and first column of an invocation's sums."""
        with T.launch_thread("threadIdx.x", self.threads) as thread:
            lane = thread % SUBGROUP
            yield T.Bind(lane * self._count // self.columns), T.Bind(lane * self._count % self.columns)
