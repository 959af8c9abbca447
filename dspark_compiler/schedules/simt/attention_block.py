"""A work group's share of attention: some query rows over some slots, with a running softmax a team.

Running softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867). Teams take slots in turn, a few at once so that they
are on their way together, and put their sums side by side at the end, where a thread adds up an element of these. A
slot goes to the same team, at the same turn, whatever the number of query rows, and one that is masked for a row
leaves its sums as they are: a token's output is bit for bit the same from decode and verify. New tokens are no more
than teams, so a team has one new slot at most; no row sees those behind it in its turn, where it comes last.
"""

from contextlib import nullcontext
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_held import Held
from dspark_compiler.schedules.simt.attention_place import AT_ONCE, TURN, Pieces, Place
from dspark_compiler.schedules.simt.attention_seen import NewSlot, Seen
from dspark_compiler.schedules.simt.attention_totals import TEAMS, Totals
from dspark_compiler.schedules.simt.cache_rows import Tensors
from dspark_compiler.schedules.simt.group_counts import held
from dspark_compiler.schedules.simt.threads import TEAM, barrier, registers, team_sum
from dspark_compiler.schedules.tir import Buffer, Expr, when

MASKED = -1e30  # the maximum of nothing: finite, for its difference to itself is taken

_AHEAD = 2  # turns under way: what more of them take of registers the launches beside this one lack
_UNSEEN = -3e38  # a score whose weight is nothing beside any maximum


class Rows(Protocol):
    """Where a work group finds queries, keys and values."""

    first_new: Expr | None  # slots from here on are new, and only ``fetch_new`` has them; None: all are stored

    def query(self, i: int, target: Buffer, at: tuple[int, int], element: Expr, count: int) -> None:
        """target[at] and behind it = elements of query row number ``i`` of the work group's, unscaled."""

    def fetch(self, name: str, held: Held, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """held[at] and behind it = what lies in "k" or "v" of a slot, as it is stored; any number if it is new."""

    def fetch_new(self, name: str, held: Held, at: tuple[int, int], token: Expr, element: Expr, count: int) -> None:
        """The same of a new token."""

    def fetch_scale(self, name: str, target: Buffer, at: int, slot: Expr) -> None:
        """target[at] = what the elements of "k" or "v" of a slot are multiples of, where they are."""


class Block:
    """The running softmax of a work group's query rows. Made at the top of a kernel."""

    def __init__(self, place: Place, tensors: Tensors, rows: Rows) -> None:
        self._rows, self._problem, self._count = rows, place.problem, range(place.count)
        shape, dtype = self._problem.shape, self._problem.dtype
        self._thread, self._lane, self._team = place.thread, T.Bind(place.lane), T.Bind(place.team)
        dims = {"k": shape.head_dim, "v": shape.value_dim}
        self._pieces = {name: Pieces.of(dim, dtype) for name, dim in dims.items()}
        self._own_keys, self._own_values = (dim // TEAM for dim in dims.values())
        self._under_way = [self._held(AT_ONCE) for _ in range(_AHEAD)]
        scaled = "kv" if self._problem.form.storage.scaled else ""
        self._scales = [{name: registers(AT_ONCE) for name in scaled} for _ in range(_AHEAD)]
        self._q = registers((place.count, self._own_keys))
        self._sums = registers((place.count, self._own_values))
        self._peak, self._total = registers(place.count), registers(place.count)
        self._slots = [registers((AT_ONCE, 2), "int32") for _ in range(_AHEAD)]
        self._seen = Seen(place, tensors)
        self._new = None if rows.first_new is None else NewSlot(rows.first_new, self._team)
        self._totals = Totals(place.count, shape.value_dim)

    def begin(self) -> None:
        """Queries, scaled, and empty sums."""
        for i in self._count:
            for number, element, count in self._pieces["k"].all(self._lane):
                self._rows.query(i, self._q, (i, number), element, count)
            for number in range(self._own_keys):
                T.buffer_store(self._q, self._q[i, number] * T.float32(self._problem.scoring.scale), [i, number])
            for number in range(self._own_values):
                T.buffer_store(self._sums, T.float32(0.0), [i, number])
            T.buffer_store(self._peak, T.float32(MASKED), [i])
            T.buffer_store(self._total, T.float32(0.0), [i])
            self._seen.begin(i)

    def ask(self, begin: Expr, stop: Expr) -> None:
        """Has the first turns' slots on their way, as far as they are there; then comes ``take`` of the same."""
        for place in range(_AHEAD):
            with when(begin + place * TURN < stop) if place else nullcontext():
                self._ask_turn(place, begin + place * TURN, stop)

    def take(self, begin: Expr, stop: Expr) -> None:
        """All slots from ``begin`` on, a multiple of ``TURN``, up to before ``stop``."""
        turns = T.Bind(T.max((stop - begin + (TURN - 1)) // TURN, 0))
        with T.serial(0, (turns + (_AHEAD - 1)) // _AHEAD) as several:
            for place in range(_AHEAD):
                turn = T.Bind(several * _AHEAD + place)
                with when(turn < turns) if place else nullcontext():
                    self._take_turn(place, T.Bind(begin + turn * TURN))
                    with when(turn + _AHEAD < turns):
                        self._ask_turn(place, begin + (turn + _AHEAD) * TURN, stop)

    def put_together(self) -> Totals:
        """What all teams have made, added up."""
        totals = self._totals
        for i in self._count:
            if i:
                barrier()  # the row before has been read
            with when(self._lane == 0):
                T.buffer_store(totals.peaks, self._peak[i], [self._team])
                T.buffer_store(totals.weights, self._total[i], [self._team])
            for number, element, count in self._pieces["v"].all(self._lane):
                for e in range(count):
                    T.buffer_store(totals.sums, self._sums[i, number + e], [self._team, element + e])
            barrier()
            totals.add_up(i, self._thread)
        return totals

    def _held(self, slots: int) -> dict[str, Held]:
        """Room for keys and values of some slots."""
        own = {"k": self._own_keys, "v": self._own_values}
        return {name: Held(slots, own[name], self._pieces[name].each, self._problem.dtype) for name in own}

    def _ask_turn(self, place: int, begin: Expr, stop: Expr) -> None:
        """The slots of a turn that are the team's, for each one that can be read, and what is stored of these."""
        slots = self._slots[place]
        for u in range(AT_ONCE):
            T.buffer_store(slots, begin + u * TEAMS + self._team, [u, 0])
            T.buffer_store(slots, T.max(T.min(slots[u, 0], stop - 1), 0), [u, 1])
        with when(begin < self._new.first) if self._new else nullcontext():
            for u in range(AT_ONCE):
                for name, under_way in self._under_way[place].items():
                    for number, element, count in self._pieces[name].all(self._lane):
                        self._rows.fetch(name, under_way, (u, number), slots[u, 1], element, count)
        for name, scales in self._scales[place].items():
            for u in range(AT_ONCE):
                self._rows.fetch_scale(name, scales, u, slots[u, 1])

    def _take_turn(self, place: int, begin: Expr) -> None:
        """What a turn of slots from ``begin`` on adds to each row: its weights, then its values."""
        weights = registers((len(self._count), AT_ONCE))
        for i in self._count:
            for u in range(AT_ONCE):
                T.buffer_store(weights, T.float32(0.0), [i, u])
        with when(begin < self._new.first) if self._new else nullcontext():
            for u in range(AT_ONCE):
                products = self._products(self._under_way[place]["k"], u)
                for i in self._count:
                    T.buffer_store(weights, products[i], [i, u])
        if self._new:
            with when(begin + TURN > self._new.first):
                self._score_new(self._new, place, weights)
        for i in self._count:
            self._weigh(place, i, weights)
        with when(begin < self._new.first) if self._new else nullcontext():
            for u in range(AT_ONCE):
                self._add(
                    self._under_way[place]["v"], u, [self._of_stored(place, u, weights[i, u]) for i in self._count]
                )
        if self._new:
            with when(begin + TURN > self._new.first):
                self._add_new(self._new, place, weights)

    def _score_new(self, new: NewSlot, place: int, products: Buffer) -> None:
        """The product with the new slot's key in its place among a turn's."""
        product = self._products(self._fetch_new(new, "k"), 0)
        for u in range(AT_ONCE):
            for i in self._count:
                chosen = T.Select(new.is_at(self._slots[place][u, 0]), product[i], products[i, u])
                T.buffer_store(products, chosen, [i, u])

    def _add_new(self, new: NewSlot, place: int, weights: Buffer) -> None:
        """Adds the new slot's value, 0 times where it is not in the turn."""
        own = []
        for i in self._count:
            weight: Expr = T.float32(0.0)
            for u in range(AT_ONCE):
                weight = T.Select(new.is_at(self._slots[place][u, 0]), weights[i, u], weight)
            own.append(weight)
        self._add(self._fetch_new(new, "v"), 0, own)

    def _products(self, keys: Held, u: int) -> Buffer:
        """The key of a slot by the query of each row."""
        products = registers(len(self._count))
        for i in self._count:
            T.buffer_store(products, T.float32(0.0), [i])
        for number in range(self._own_keys):
            key = self._wide(keys.element(u, number))
            for i in self._count:
                T.buffer_store(products, T.fma(self._q[i, number], key, products[i]), [i])
        for i in self._count:
            T.buffer_store(products, team_sum(products[i]), [i])
        return products

    def _weigh(self, place: int, i: int, weights: Buffer) -> None:
        """weights[i] = those of a turn's values, from its products; sums become relative to the new maximum."""
        slots, peak, decay = self._slots[place], registers(1), registers(1)
        T.buffer_store(peak, self._peak[i], [0])
        for u in range(AT_ONCE):
            score = self._capped(self._scaled(place, "k", u, weights[i, u]))
            T.buffer_store(weights, T.Select(self._seen.sees(i, slots[u, 0]), score, T.float32(_UNSEEN)), [i, u])
            T.buffer_store(peak, T.max(peak[0], weights[i, u]), [0])
        T.buffer_store(decay, T.exp(self._peak[i] - peak[0]), [0])
        T.buffer_store(self._peak, peak[0], [i])
        T.buffer_store(self._total, self._total[i] * decay[0], [i])
        for u in range(AT_ONCE):
            T.buffer_store(weights, T.exp(weights[i, u] - peak[0]), [i, u])
            T.buffer_store(self._total, self._total[i] + weights[i, u], [i])
            T.buffer_store(weights, self._scaled(place, "v", u, weights[i, u]), [i, u])
        for number in range(self._own_values):
            T.buffer_store(self._sums, self._sums[i, number] * decay[0], [i, number])

    def _add(self, values: Held, u: int, weights: list[Expr]) -> None:
        """Adds the value of a slot to the sums of each row, ``weights`` times."""
        kept = [held(weight, "float32") for weight in weights]
        for number in range(self._own_values):
            value = self._wide(values.element(u, number))
            for i in self._count:
                T.buffer_store(self._sums, T.fma(kept[i], value, self._sums[i, number]), [i, number])

    def _fetch_new(self, new: NewSlot, name: str) -> Held:
        """The key or value of the team's new token; of another where it has none."""
        own, token = self._held(1)[name], T.Bind(T.min(new.token, self._problem.shape.width - 1))
        for number, element, count in self._pieces[name].all(self._lane):
            self._rows.fetch_new(name, own, (0, number), token, element, count)
        return own

    def _of_stored(self, place: int, u: int, weight: Expr) -> Expr:
        """A slot's weight, 0 where what is under way is not its value."""
        return T.Select(self._slots[place][u, 0] < self._new.first, weight, T.float32(0.0)) if self._new else weight

    def _wide(self, element: Expr) -> Expr:
        """An element as float32, made once for all rows."""
        return held(self._problem.wide(element), "float32")

    def _scaled(self, place: int, name: str, u: int, value: Expr) -> Expr:
        """A product with what is stored of a slot, made one with its key, or a weight of its value."""
        return value * self._scales[place][name][u] if self._scales[place] else value

    def _capped(self, score: Expr) -> Expr:
        if not self._problem.scoring.softcap:
            return score
        cap = T.float32(self._problem.scoring.softcap)
        return T.tanh(score / cap) * cap
