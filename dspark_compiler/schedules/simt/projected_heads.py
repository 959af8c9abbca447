"""Heads out of the projection by a whole work group: norm and rotary positions, a thread an element.

What a work group of attention needs of it is little, and it waits for it: threads take an element each, so that all
is asked for at once, and put sums and halves of a head together in shared memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_block import Place
from dspark_compiler.schedules.simt.attention_totals import TEAMS, THREADS
from dspark_compiler.schedules.simt.awaited import await_numbers
from dspark_compiler.schedules.simt.cache_rows import Tensors
from dspark_compiler.schedules.simt.qkv_prologue import Halves, Prologue, inverse_root
from dspark_compiler.schedules.simt.threads import barrier, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

_ASKED_EARLY = 2  # elements of a thread whose factors are on their way before the projection is there


@dataclass(frozen=True)
class Unit:
    """An element that a thread makes: ``task`` counts the work group's query rows, then the tokens' keys."""

    task: Expr
    d: Expr
    is_query: Expr
    token: Expr
    number: Expr  # of the head among all of the projection
    wanted: Expr  # whether there is such an element, and anybody needs it


Store = Callable[[Unit, Expr], None]


class ProjectedHeads:
    """The queries of a work group, and the new keys of its head where ``has_new``. Made at the top of a kernel."""

    def __init__(self, place: Place, work: Prologue, tensors: Tensors, has_new: Expr) -> None:
        self._place, self._work, self._tensors, self._has_new = place, work, tensors, has_new
        shape = place.problem.shape
        self._dim, self._tasks = shape.head_dim, place.count + shape.width
        self._turns = -(-self._tasks * self._dim // THREADS)
        self._raw = shared((self._tasks, self._dim))
        self._roots = shared(self._tasks) if work.eps is not None else None

    def rotate(self, store: Store) -> None:
        """Norm and rotation of all; a barrier has to follow what is stored."""
        units = [self._unit(turn) for turn in range(self._turns)]
        early = self._turns <= _ASKED_EARLY
        factors = [self._factors(unit) for unit in units] if early else []
        x = registers(self._turns)
        self._bring(x, units)
        for turn, unit in enumerate(units):
            with when(unit.wanted):
                T.buffer_store(self._raw, x[turn], [unit.task, unit.d])
        barrier()
        self._norm()
        for turn, unit in enumerate(units):
            with when(unit.wanted):
                store(unit, self._rotated(unit, x[turn], factors[turn] if early else self._factors(unit)))

    def _unit(self, turn: int) -> Unit:
        place, shape = self._place, self._place.problem.shape
        at = T.Bind(turn * THREADS + place.thread)
        task, d = T.Bind(at // self._dim), T.Bind(at % self._dim)
        is_query = T.Bind(task < place.count)
        query_token, query_head = place.query(T.min(task, place.count - 1))
        new = T.Bind(T.max(T.min(task - place.count, shape.width - 1), 0))
        token = T.Bind(T.Select(is_query, query_token, new))
        number = T.Bind(T.Select(is_query, query_head, shape.heads + place.head))
        wanted = T.Bind(T.And(task < self._tasks, T.Or(is_query, self._has_new)))
        return Unit(task, d, is_query, token, number, wanted)

    def _partner(self, unit: Unit) -> Expr:
        """The element that a rotation turns it with."""
        half = self._dim // 2
        return T.Bind(T.Select(unit.d < half, unit.d + half, unit.d - half))

    def _bring(self, x: Buffer, units: list[Unit]) -> None:
        """Elements that nobody wants, too: they are there at the same time."""
        source, width = self._tensors["x"], self._place.problem.shape.width
        places = [(T.Bind(self._place.row * width + u.token), T.Bind(u.number * self._dim + u.d)) for u in units]
        if self._place.problem.awaits:
            await_numbers(x, [(turn,) for turn in range(self._turns)], lambda turn: source[places[turn]])
            return
        for turn, place in enumerate(places):
            T.buffer_store(x, source[place], [turn])

    def _factors(self, unit: Unit) -> Buffer:
        """Weights of the norm, of the element and of its partner, cosine and sine."""
        factors, partner = registers(4), self._partner(unit)
        with when(unit.wanted):
            if self._work.eps is not None:
                for i, d in enumerate((unit.d, partner)):
                    query, key = (self._tensors[f"{name}_weight"][d] for name in "qk")
                    T.buffer_store(factors, T.if_then_else(unit.is_query, query, key), [i])
            if self._work.rope:
                for i, name in enumerate(("cos", "sin")):
                    T.buffer_store(factors, self._tensors[name][self._place.row, 0, unit.token, unit.d], [2 + i])
        return factors

    def _rotated(self, unit: Unit, x: Expr, factors: Buffer) -> Expr:
        scale = None if self._roots is None else self._roots[unit.task]
        if scale is not None:
            x = T.Bind(x * scale * factors[0])
        if not self._work.rope:
            return x
        other = self._raw[unit.task, self._partner(unit)]
        other = T.Bind(other if scale is None else other * scale * factors[1])
        low, high = x * factors[2] - other * factors[3], x * factors[2] + other * factors[3]
        return T.Bind(T.Select(unit.d < self._dim // 2, low, high))

    def _norm(self) -> None:
        """What the norm scales each head by, the same bits as from ``Head``: a team a head, in turns."""
        if self._roots is None:
            return
        assert self._work.eps is not None
        halves, lane, total = Halves(self._dim), self._place.lane, registers(1)
        for turn in range(-(-self._tasks // TEAMS)):
            task = T.Bind(turn * TEAMS + self._place.team)
            own = T.Bind(T.min(task, self._tasks - 1))
            T.buffer_store(total, T.float32(0.0), [0])
            for line in range(halves.turns * 2):
                for e in range(halves.each):
                    value = self._raw[own, halves.element(line, lane) + e]
                    inside = halves.first(line // 2, lane) < self._dim // 2
                    T.buffer_store(total, total[0] + T.Select(inside, value * value, T.float32(0.0)), [0])
            root = inverse_root(total[0], self._dim, self._work.eps)
            with when(T.And(task < self._tasks, lane == 0)):
                T.buffer_store(self._roots, root, [task])
        barrier()
