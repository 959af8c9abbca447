"""Attention whose slots are shared out to several work groups: their parts in a workspace, and the sum of these.

Parts of a sequence after FlashDecoding. Parts are added up in the order of their slots, whoever does it, and one in
which a row sees nothing changes nothing: a token's output does not depend on what else is asked for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_block import MASKED
from dspark_compiler.schedules.simt.attention_place import TURN, Place
from dspark_compiler.schedules.simt.attention_totals import THREADS, Totals
from dspark_compiler.schedules.simt.awaited import publish, told
from dspark_compiler.schedules.simt.cache_rows import Problem, Tensors
from dspark_compiler.schedules.simt.device_memory import load_shared, store_shared
from dspark_compiler.schedules.simt.eighths import EIGHTHS, publish_pair
from dspark_compiler.schedules.simt.group_counts import held
from dspark_compiler.schedules.simt.threads import of_lane_apart, registers
from dspark_compiler.schedules.tir import Expr, when

FEW_TOKENS = 32  # of a call whose slots are shared out

_MOST_CHUNKS = 64
_TURNS = 4  # of a part at least: meeting takes longer than a few of them
_WRITTEN_OUT = 2  # elements of a thread that follow each other without a loop
AT_ONCE = 8  # parts whose numbers are on their way together


def chunk_size(problem: Problem) -> int:
    """Slots of a part, whole turns."""
    if problem.shape.width > FEW_TOKENS:
        return problem.slots
    return TURN * max(_TURNS, -(-problem.slots // (TURN * _MOST_CHUNKS)))


def chunks_of(problem: Problem) -> int:
    """Parts of a call."""
    return -(-problem.slots // chunk_size(problem))


def partial_size(problem: Problem) -> int:
    """Numbers of the workspace: for each row of the call, query row and part the values, their weight, the maximum."""
    shape = problem.shape
    return shape.rows * shape.kv_heads * problem.rows * chunks_of(problem) * (shape.value_dim + 2)


def chunk_range(place: Place) -> tuple[Expr, Expr]:
    """The parts in which any of the rows may see a slot, one at least: from the first up to before the second."""
    size = chunk_size(place.problem)
    begin, stop = place.bounds()
    first = T.Bind(begin // size)
    return first, T.Bind(T.max((stop + (size - 1)) // size, first + 1))


def chunk_bounds(place: Place, chunk: Expr) -> tuple[Expr, Expr]:
    """Slots of a part that any of the rows may see."""
    size = chunk_size(place.problem)
    begin, stop = place.bounds()
    return T.Bind(T.max(begin, chunk * size)), T.Bind(T.min(stop, (chunk + 1) * size))


def is_in(chunk: Expr, parts: tuple[Expr, Expr]) -> Expr:
    """Whether ``chunk`` is one of a range."""
    return T.And(chunk >= parts[0], chunk < parts[1])


class Parts:
    """The parts of a call's rows in the workspace; ``at_once`` where they are read in the launch that writes them."""

    def __init__(self, problem: Problem, tensors: Tensors, *, at_once: bool) -> None:
        self._problem, self._tensors, self._at_once = problem, tensors, at_once
        self._width = problem.shape.value_dim + 2

    def put(self, place: Place, chunk: Expr, totals: Totals) -> None:
        """Stores the work group's part, all its threads together."""
        value_dim = self._problem.shape.value_dim

        def store(i: int, d: Expr, value: Expr, weight: Expr, peak: Expr) -> None:
            with of_row(place, i):
                at = self.line(place, place.first + i, chunk)
                self._store(at + d, value)
                with when(d == 0):
                    self._store(at + value_dim, weight)
                    self._store(at + (value_dim + 1), peak)

        totals.for_elements(place.thread, store)

    def write_out(self, place: Place, first: Expr, last: Expr) -> None:
        """Writes "out" of parts first..last of all the work group's rows."""
        _for_elements(place, lambda i, d: put_out(place, self._tensors, i, d, *self._sum(place, i, d, first, last)))

    def _sum(self, place: Place, i: Expr, d: Expr, first: Expr, last: Expr) -> tuple[Expr, Expr, Expr]:
        """The sum of parts first..last of one element, its weight, and the maximum they are relative to."""
        value_dim = self._problem.shape.value_dim
        total = PartSum()
        values, weights, peaks = registers(AT_ONCE), registers(AT_ONCE), registers(AT_ONCE)
        with T.serial(0, (last - first + (AT_ONCE - 1)) // AT_ONCE) as turn:
            begin = T.Bind(first + turn * AT_ONCE)
            for u in range(AT_ONCE):
                at = self.line(place, place.first + i, T.min(begin + u, last - 1))
                T.buffer_store(values, self._load(at + d), [u])
                T.buffer_store(weights, self._load(at + value_dim), [u])
                T.buffer_store(peaks, self._load(at + (value_dim + 1)), [u])
            for u in range(AT_ONCE):
                with when(begin + u < last):
                    total.add(values[u], weights[u], peaks[u])
        return total.result()

    def line(self, place: Place, m: Expr, chunk: Expr) -> Expr:
        """Where the numbers of a query row's part begin."""
        shape = self._problem.shape
        row = (place.row * shape.kv_heads + place.head) * self._problem.rows + m
        return T.Bind((row * chunks_of(self._problem) + chunk) * self._width)

    def _store(self, at: Expr, value: Expr) -> None:
        workspace = self._tensors["workspace"]
        if self._at_once:
            store_shared(workspace, at, told(value))
        else:
            T.buffer_store(workspace, value, [at])

    def _load(self, at: Expr) -> Expr:
        workspace = self._tensors["workspace"]
        return load_shared(workspace, at) if self._at_once else workspace[at]


class PartSum:
    """The sum of an element's parts, each relative to a maximum of its own, in the order they are added."""

    def __init__(self) -> None:
        self._value, self._weight, self._peak = registers(1), registers(1), registers(1)
        T.buffer_store(self._value, T.float32(0.0), [0])
        T.buffer_store(self._weight, T.float32(0.0), [0])
        T.buffer_store(self._peak, T.float32(MASKED), [0])

    def add(self, value: Expr, weight: Expr, peak: Expr) -> None:
        """One more part."""
        higher, kept, added = registers(1), registers(1), registers(1)
        T.buffer_store(higher, T.max(self._peak[0], peak), [0])
        T.buffer_store(kept, T.exp(self._peak[0] - higher[0]), [0])
        T.buffer_store(added, T.exp(peak - higher[0]), [0])
        T.buffer_store(self._weight, T.fma(weight, added[0], self._weight[0] * kept[0]), [0])
        T.buffer_store(self._value, T.fma(value, added[0], self._value[0] * kept[0]), [0])
        T.buffer_store(self._peak, higher[0], [0])

    def result(self) -> tuple[Expr, Expr, Expr]:
        """The sum, its weight, the maximum both are relative to."""
        return self._value[0], self._weight[0], self._peak[0]


def put_total(place: Place, tensors: Tensors, totals: Totals) -> None:
    """Stores "out" of all the work group's rows, whose slots are all in ``totals``."""

    def store(i: int, d: Expr, *result: Expr) -> None:
        with of_row(place, i):
            put_out(place, tensors, T.int32(i), d, *result)

    totals.for_elements(place.thread, store)


def of_row(place: Place, i: int) -> AbstractContextManager[Any]:
    """What is done only where there is a row ``i`` of the work group's."""
    whole = place.problem.rows % place.count == 0
    return nullcontext() if whole else when(place.first + i < place.problem.rows)


def _for_elements(place: Place, emit: Callable[[Expr, Expr], None]) -> None:
    """Calls emit(i, d) for the elements of the work group's rows that are a thread's; rows there are not have none."""
    problem, count = place.problem, place.count
    value_dim = problem.shape.value_dim
    whole = count * value_dim % THREADS == 0 and problem.rows % count == 0

    def one(turn: Expr) -> None:
        unit = T.Bind(turn * THREADS + place.thread)
        i, d = T.Bind(unit // value_dim), T.Bind(unit % value_dim)
        inside = T.And(unit < count * value_dim, place.first + i < problem.rows)
        with nullcontext() if whole else when(inside):
            emit(i, d)

    turns = -(-count * value_dim // THREADS)
    if turns <= _WRITTEN_OUT:
        for turn in range(turns):  # nothing between them, so that they run side by side
            one(T.int32(turn))
        return
    with T.serial(0, turns) as turn:
        one(turn)


def put_out(place: Place, tensors: Tensors, i: Expr, d: Expr, value: Expr, weight: Expr, peak: Expr) -> None:
    """Stores an element of "out"; a sink is one more slot, of no value. Rows of padding have seen nothing: zeros."""
    token, head = place.query(i)
    if place.problem.scoring.sinks:
        higher, kept, sink = registers(1), registers(1), tensors["sinks"][head]
        T.buffer_store(higher, T.max(peak, sink), [0])
        T.buffer_store(kept, T.exp(peak - higher[0]), [0])
        value, weight = value * kept[0], T.fma(weight, kept[0], T.exp(sink - higher[0]))
    quotient, out = T.Select(weight > T.float32(0.0), value / weight, T.float32(0.0)), tensors["out"]
    if place.problem.awaits and out.dtype == EIGHTHS:
        own = held(quotient, "float32")
        other = held(of_lane_apart(own, 1), "float32")  # the next thread has the next element
        with when(d % 2 == 0):
            publish_pair(out, [place.row, token, head, d], own, other)
    elif place.problem.awaits:
        publish(out, [place.row, token, head, d], quotient)
    else:
        T.buffer_store(out, quotient, [place.row, token, head, d])
