"""A row of logits cut into chunks, one a work group: a thread has some neighbours, which are asked for at once."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask
from dspark_compiler.schedules.simt.group_counts import held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS
from dspark_compiler.schedules.simt.row_limits import LOWEST, NOWHERE
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import TEAM, barrier, of_lane_apart, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

_AT_ONCE = 4


@dataclass(frozen=True)
class VocabularyCut:
    """Sizes for rows of ``vocab`` logits; a work group has a thread for each chunk."""

    vocab: int

    @property
    def each(self) -> int:
        """Neighbours a thread has."""
        return -(-self.vocab // (THREADS * THREADS * _AT_ONCE)) * _AT_ONCE

    @property
    def size(self) -> int:
        """Logits of a chunk; the last one may have fewer."""
        return THREADS * self.each

    @property
    def count(self) -> int:
        """Chunks of a row."""
        return -(-self.vocab // self.size)

    def asks(self, target: Buffer, start: Expr, source: Buffer, at: tuple[Expr, ...]) -> list[Ask]:
        """For a thread's neighbours of source[at], from ``start`` on; past the row's end for others of it."""
        at_once = self._at_once
        places = range(0, self.each, at_once)
        return [
            Ask(target, (e,), source, (*at, T.Bind(T.min(start + e, self.vocab - at_once))), at_once) for e in places
        ]

    def start(self, chunk: Expr, thread: Expr) -> Expr:
        """A thread's first."""
        return T.Bind((chunk * THREADS + thread) * self.each)

    def each_inside(self, start: Expr, emit: Callable[[int, Expr], None]) -> None:
        """Calls emit(e, i) for each of a thread's neighbours, number e, that is element i of the row."""
        for e in range(self.each):
            i = T.Bind(start + e)
            with when(i < self.vocab):
                emit(e, i)

    def store(self, source: Buffer, start: Expr, target: Buffer, at: tuple[Expr, ...]) -> None:
        """Puts what a thread has of its neighbours to target[at]."""
        at_once = self._at_once
        for e in range(0, self.each, at_once):
            i = T.Bind(start + e)
            with when(i < self.vocab):
                copy(target, (*at, i), source, (T.int32(e),), at_once)

    @property
    def _at_once(self) -> int:
        """Neighbours in one access: rows of another length do not begin where several are read at once."""
        return _AT_ONCE if self.vocab % _AT_ONCE == 0 else 1


def highest_of(cut: VocabularyCut, start: Expr, logits: Buffer, thread: Expr) -> tuple[Expr, Expr]:
    """The highest of a work group's logits, and where the first of its equals is."""
    best, place = variable(T.float32(LOWEST), "float32"), variable(T.int32(NOWHERE), "int32")

    def look(e: int, i: Expr) -> None:
        with when(logits[e] > best[0]):
            T.buffer_store(best, logits[e], [0])
            T.buffer_store(place, i, [0])

    cut.each_inside(start, look)
    return first_highest(best[0], place[0], thread)


def first_highest(value: Expr, place: Expr, thread: Expr) -> tuple[Expr, Expr]:
    """The highest of all threads' values, and the place of the first thread that has it; places grow with threads."""
    value, place = _of_team(value, place)
    values, places = shared(THREADS // TEAM), shared(THREADS // TEAM, "int32")
    with when(thread % TEAM == 0):
        T.buffer_store(values, value, [thread // TEAM])
        T.buffer_store(places, place, [thread // TEAM])
    barrier()
    best, found = variable(values[0], "float32"), variable(places[0], "int32")
    for team in range(1, THREADS // TEAM):
        T.buffer_store(found, T.Select(values[team] > best[0], places[team], found[0]), [0])
        T.buffer_store(best, T.max(values[team], best[0]), [0])
    return T.Bind(best[0]), T.Bind(found[0])


def _of_team(value: Expr, place: Expr) -> tuple[Expr, Expr]:
    value, place, distance = held(value, "float32"), held(place, "int32"), TEAM // 2
    while distance:
        other = held(of_lane_apart(value, distance), "float32")
        there = held(of_lane_apart(place, distance), "int32")
        takes = T.Or(other > value, T.And(other == value, there < place))
        value, place = held(T.Select(takes, other, value), "float32"), held(T.Select(takes, there, place), "int32")
        distance //= 2
    return value, place
