"""A work group's share of attention: some query rows over some slots, with a running softmax a team.

Running softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867). Teams take slots in turn, a few at once so that they
are on their way together, and put their sums together at the end: half of the teams add those of the other half to
their own, then a thread adds up an element of these. A slot goes to the same team, at the same turn, whatever the
number of query rows, and one that is masked for a row leaves its sums as they are: a token's output is bit for bit the
same from decode and verify.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_totals import PAIRS, TEAMS, Totals
from dspark_compiler.schedules.simt.cache_rows import Problem, Span, Tensors
from dspark_compiler.schedules.simt.stored import copy, elements_at_once
from dspark_compiler.schedules.simt.threads import TEAM, barrier, registers, shared, team_max, team_sum
from dspark_compiler.schedules.tir import Buffer, Expr, when

_PEAKS = TEAMS // TEAM  # maxima that each of a team's lanes reads
AT_ONCE = 4  # slots that a team takes in a turn
_AHEAD = 2  # turns under way where a work group has one row: several take all registers there are
TURN = TEAMS * AT_ONCE  # slots that a work group takes in a turn
MASKED = -1e30  # the maximum of nothing: finite, for its difference to itself is taken
_UNSEEN = -3e38  # a score whose weight is nothing beside any maximum

_MOST_REGISTERS = 64  # floats of queries and of sums that a thread holds
_MOST_ROWS = 4  # query rows written out one after the other
_FEW_GROUPS = 32  # work groups that leave a device so idle that each takes a row


def rows_together(problem: Problem) -> int:
    """Query rows a work group holds at a time."""
    shape = problem.shape
    if shape.rows * shape.kv_heads * problem.rows <= _FEW_GROUPS:
        return 1
    return max(1, min(problem.rows, _MOST_ROWS, _MOST_REGISTERS * TEAM // (shape.head_dim + shape.value_dim)))


@dataclass(frozen=True)
class Place:
    """Query rows first..first+count of key/value head ``head`` in the call's row ``row``, and who asks."""

    problem: Problem
    span: Span
    row: Expr
    head: Expr
    first: Expr
    count: int
    thread: Expr

    @property
    def lane(self) -> Expr:
        """Of the team."""
        return self.thread % TEAM

    @property
    def team(self) -> Expr:
        """Of the work group."""
        return self.thread // TEAM

    def query(self, i: int | Expr) -> tuple[Expr, Expr]:
        """Token and query head of a row; of rows there are not those of the last."""
        m = T.Bind(T.min(self.first + i, self.problem.rows - 1))
        group = self.problem.shape.group
        return T.Bind(m // group), T.Bind(self.head * group + m % group)

    def limit(self, i: int) -> Expr:
        """Slots from here on a row does not see."""
        if not self.problem.causal:
            return self.span.end
        return T.min(self.span.used + self.query(i)[0] + 1, self.span.end)

    def bounds(self) -> tuple[Expr, Expr]:
        """Slots that any of the rows may see: from the first, a multiple of ``TURN``, up to before the second."""
        span, shape, scoring = self.span, self.problem.shape, self.problem.scoring
        if not self.problem.causal:
            return T.int32(0), span.end
        tokens = T.Bind((self.first + self.count - 1) // shape.group)
        stop = T.Bind(T.min(span.end, span.used + T.min(tokens, shape.width - 1) + 1))
        if not scoring.window or self.problem.form.slot_position:
            return T.int32(0), stop
        seen = T.max(span.used + self.first // shape.group + (1 - scoring.window), 0)
        return T.Bind(seen // TURN * TURN), stop


@dataclass(frozen=True)
class Pieces:
    """How a team's lanes share a row of a head: ``count`` accesses of ``each`` elements a lane, side by side."""

    each: int
    count: int

    @staticmethod
    def of(dim: int, dtype: str) -> "Pieces":
        """Those of a row of ``dim`` elements stored as ``dtype``."""
        own = dim // TEAM
        each = min(elements_at_once(dtype), own & -own)
        return Pieces(each, own // each)

    def element(self, lane: Expr, number: int) -> Expr:
        """The element of the row that is number ``number`` of a lane's."""
        piece, offset = divmod(number, self.each)
        return (piece * TEAM + lane) * self.each + offset


class Rows(Protocol):
    """Where a work group finds queries, keys and values."""

    keeps_new: bool  # whether ``fetch`` leaves new slots to ``fetch_new``

    def query(self, i: int, element: Expr) -> Expr:
        """An element of query row number ``i`` of the work group's, unscaled."""

    def fetch(self, name: str, target: Buffer, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """target[at : at+count] = what lies in "k" or "v" of a slot, as it is stored; anything if it is new."""

    def fetch_new(self, name: str, target: Buffer, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """The same of new slots, and of no other."""

    def fetch_scale(self, name: str, target: Buffer, at: int, slot: Expr) -> None:
        """target[at] = what the elements of "k" or "v" of a slot are multiples of, where they are."""


class Block:
    """The running softmax of a work group's query rows. Made at the top of a kernel."""

    def __init__(self, place: Place, tensors: Tensors, rows: Rows) -> None:
        self._place, self._tensors, self._rows = place, tensors, rows
        self._problem, self._span = place.problem, place.span
        shape = self._problem.shape
        dtype = self._problem.dtype
        self._lane, self._team = T.Bind(place.lane), T.Bind(place.team)
        self._pieces = {"k": Pieces.of(shape.head_dim, dtype), "v": Pieces.of(shape.value_dim, dtype)}
        self._own_keys, self._own_values = shape.head_dim // TEAM, shape.value_dim // TEAM
        self._ahead = _AHEAD if place.count == 1 else 1
        self._under_way = [
            {"k": registers((AT_ONCE, self._own_keys), dtype), "v": registers((AT_ONCE, self._own_values), dtype)}
            for _ in range(self._ahead)
        ]
        scaled = "kv" if self._problem.form.storage.scaled else ""
        self._scales = [{name: registers(AT_ONCE) for name in scaled} for _ in range(self._ahead)]
        self._q = registers((place.count, self._own_keys))
        self._sums = registers((place.count, self._own_values))
        self._peak, self._total = registers(place.count), registers(place.count)
        self._slots = [registers((AT_ONCE, 2), "int32") for _ in range(self._ahead)]
        self._limit = registers(place.count, "int32")  # slots from here on a row does not see
        self._totals = Totals(
            shared((PAIRS, place.count, shape.value_dim)),
            shared((place.count, TEAMS)),
            shared((place.count, TEAMS)),
        )

    def begin(self) -> None:
        """Queries, scaled, and empty sums."""
        for i in range(self._place.count):
            for number in range(self._own_keys):
                value = self._rows.query(i, self._pieces["k"].element(self._lane, number))
                T.buffer_store(self._q, value * T.float32(self._problem.scoring.scale), [i, number])
            for number in range(self._own_values):
                T.buffer_store(self._sums, T.float32(0.0), [i, number])
            T.buffer_store(self._peak, T.float32(MASKED), [i])
            T.buffer_store(self._total, T.float32(0.0), [i])
            T.buffer_store(self._limit, self._place.limit(i), [i])

    def ask(self, begin: Expr, stop: Expr) -> None:
        """Has the first turns' slots on their way, as far as they are there; then comes ``take`` of the same."""
        for place in range(self._ahead):
            with when(begin + place * TURN < stop) if place else nullcontext():
                self._ask_turn(place, begin + place * TURN, stop)

    def take(self, begin: Expr, stop: Expr) -> None:
        """All slots from ``begin`` on, a multiple of ``TURN``, up to before ``stop``."""
        turns, ahead = T.Bind(T.max((stop - begin + (TURN - 1)) // TURN, 0)), self._ahead
        with T.serial(0, (turns + (ahead - 1)) // ahead) as several:
            for place in range(ahead):
                turn = T.Bind(several * ahead + place)
                with when(turn < turns) if place else nullcontext():
                    self._take_turn(place, begin + (turn + 1) * TURN)
                    with when(turn + ahead < turns):
                        self._ask_turn(place, begin + (turn + ahead) * TURN, stop)

    def _ask_turn(self, place: int, begin: Expr, stop: Expr) -> None:
        """The slots of a turn that are the team's, for each one that can be read, and what is stored of these."""
        slots = self._slots[place]
        for u in range(AT_ONCE):
            T.buffer_store(slots, begin + u * TEAMS + self._team, [u, 0])
            T.buffer_store(slots, T.max(T.min(slots[u, 0], stop - 1), 0), [u, 1])
        self._fetch(place, self._rows.fetch)
        for name, scales in self._scales[place].items():
            for u in range(AT_ONCE):
                self._rows.fetch_scale(name, scales, u, slots[u, 1])

    def _take_turn(self, place: int, end: Expr) -> None:
        """A turn of slots up to before ``end``."""
        if self._rows.keeps_new:
            with when(end > self._span.used):
                self._fetch(place, self._rows.fetch_new)
        self._add(place)

    def _fetch(self, place: int, fetch: Callable[..., None]) -> None:
        slots, under_way = self._slots[place], self._under_way[place]
        for name, pieces in self._pieces.items():
            for u in range(AT_ONCE):
                for piece in range(pieces.count):
                    number = piece * pieces.each
                    element = pieces.element(self._lane, number)
                    fetch(name, under_way[name], (u, number), slots[u, 1], element, pieces.each)

    def _add(self, place: int) -> None:
        """What a turn's slots add to each row."""
        under_way, slots = self._under_way[place], self._slots[place]
        for i in range(self._place.count):
            weights, peak, decay = registers(AT_ONCE), registers(1), registers(1)
            T.buffer_store(peak, self._peak[i], [0])
            for u in range(AT_ONCE):
                T.buffer_store(weights, T.float32(0.0), [u])
                for number in range(self._own_keys):
                    key = self._problem.wide(under_way["k"][u, number])
                    T.buffer_store(weights, T.fma(self._q[i, number], key, weights[u]), [u])
                T.buffer_store(weights, self._capped(self._scaled(place, "k", u, team_sum(weights[u]))), [u])
                T.buffer_store(weights, T.Select(self._sees(i, slots[u, 0]), weights[u], T.float32(_UNSEEN)), [u])
                T.buffer_store(peak, T.max(peak[0], weights[u]), [0])
            T.buffer_store(decay, T.exp(self._peak[i] - peak[0]), [0])
            T.buffer_store(self._peak, peak[0], [i])
            T.buffer_store(self._total, self._total[i] * decay[0], [i])
            for u in range(AT_ONCE):
                T.buffer_store(weights, T.exp(weights[u] - peak[0]), [u])
                T.buffer_store(self._total, self._total[i] + weights[u], [i])
                T.buffer_store(weights, self._scaled(place, "v", u, weights[u]), [u])
            for number in range(self._own_values):
                T.buffer_store(self._sums, self._sums[i, number] * decay[0], [i, number])
                for u in range(AT_ONCE):
                    value = self._problem.wide(under_way["v"][u, number])
                    T.buffer_store(self._sums, T.fma(weights[u], value, self._sums[i, number]), [i, number])

    def put_together(self) -> Totals:
        """The teams' parts in shared memory, for all threads to read."""
        for i in range(self._place.count):
            with when(self._lane == 0):
                T.buffer_store(self._totals.peaks, self._peak[i], [i, self._team])
                T.buffer_store(self._totals.weights, self._total[i], [i, self._team])
            with when(self._team >= PAIRS):
                self._store_sums(i)
        barrier()
        for i in range(self._place.count):
            self._add_pair(i)
        barrier()
        for i in range(self._place.count):
            with when(self._team < PAIRS):
                self._store_sums(i)
                with when(self._lane == 0):
                    T.buffer_store(self._totals.weights, self._total[i], [i, self._team])
                    T.buffer_store(self._totals.peaks, self._peak[i], [i, self._team])
        barrier()
        return self._totals

    def _add_pair(self, i: int) -> None:
        """A row's sums of two teams, relative to the maximum of all, in the first one's registers."""
        totals, other = self._totals, T.Bind((self._team + PAIRS) % TEAMS)
        peak, own, more = registers(1), registers(1), registers(1)
        some = registers(_PEAKS)
        copy(some, (0,), totals.peaks, (i, self._lane * _PEAKS), _PEAKS)
        T.buffer_store(peak, some[0], [0])
        for team in range(1, _PEAKS):
            T.buffer_store(peak, T.max(peak[0], some[team]), [0])
        T.buffer_store(peak, team_max(peak[0]), [0])
        T.buffer_store(own, T.exp(self._peak[i] - peak[0]), [0])
        T.buffer_store(more, T.exp(totals.peaks[i, other] - peak[0]), [0])
        T.buffer_store(self._peak, peak[0], [i])
        T.buffer_store(self._total, T.fma(totals.weights[i, other], more[0], self._total[i] * own[0]), [i])
        for number in range(self._own_values):
            theirs = totals.sums[self._team % PAIRS, i, self._pieces["v"].element(self._lane, number)]
            T.buffer_store(self._sums, T.fma(theirs, more[0], self._sums[i, number] * own[0]), [i, number])

    def _store_sums(self, i: int) -> None:
        """Puts a team's sums of a row where those of its pair lie."""
        for number in range(self._own_values):
            at = [self._team % PAIRS, i, self._pieces["v"].element(self._lane, number)]
            T.buffer_store(self._totals.sums, self._sums[i, number], at)

    def _scaled(self, place: int, name: str, u: int, value: Expr) -> Expr:
        """A product with what is stored of a slot, made one with its key, or a weight of its value."""
        return value * self._scales[place][name][u] if self._scales[place] else value

    def _capped(self, score: Expr) -> Expr:
        if not self._problem.scoring.softcap:
            return score
        cap = T.float32(self._problem.scoring.softcap)
        return T.tanh(score / cap) * cap

    def _sees(self, i: int, slot: Expr) -> Expr:
        """Whether a query row sees a slot."""
        span, window = self._span, self._problem.scoring.window
        seen = slot < self._limit[i]
        if not window:
            return seen
        token = self._place.query(i)[0]
        if not self._problem.form.slot_position:
            return T.And(seen, slot > span.used + token - window)
        return T.And(seen, self._position(slot) > span.length + token - window)

    def _position(self, slot: Expr) -> Expr:
        """Position of the token in ``slot``, where slots keep theirs."""
        span, slots = self._span, self._problem.shape.slots
        valid = T.max(T.min(slot, T.min(span.used, slots) - 1), 0)
        known = self._tensors["slot_position"][span.sequence, self._place.head, valid]
        return T.Select(slot < span.used, known, span.length + slot - span.used)
