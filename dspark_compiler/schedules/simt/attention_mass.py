"""What attention the last queries paid each slot: the part of attention that a policy scores by.

One launch finds the maximum and the sum of each query's weights, the next one adds the weights up slot by slot. Teams
take slots; both launches make each product with the same instructions.
"""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.simt.group_counts import variable
from dspark_compiler.schedules.simt.slot_keys import SlotKey, key_args
from dspark_compiler.schedules.simt.threads import TEAM, group_max, group_sum, launch
from dspark_compiler.schedules.slot_rows import used_slots
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 128
_TEAMS = _THREADS // TEAM
_LOWEST = -1e30  # finite: a team may meet slots it does not see before the first it does


@dataclass(frozen=True)
class Queries:
    """The queries of a ring [B,H,R,D] that count: the last ``last``, those since slots were freed if ``bounded``."""

    heads: int
    places: int
    last: int
    bounded: bool

    @property
    def most(self) -> int:
        """As many as there can be."""
        return min(self.last, self.places)


@made_once
def attention_mass(
    name: str, shape: CacheShape, scoring: Scoring, queries: Queries, dtype: str
) -> tuple[tvm.tirx.PrimFunc, tuple[int, ...]]:
    """Attention weights of the last min(last, places, length, pending) queries, summed by slot; its workspace's shape.

    Arguments: ring [B,H,R,D], k_cache of ``dtype`` or quantized, [k_scale], slot_position int32 [B,G,C], sequence,
    length, free, [pending if bounded], [sinks [H]], out [1,H,C], workspace float32 (anything in it).
    """
    heads, workspace = queries.heads, (queries.heads, queries.most, 2)
    control = [Arg(n, (1,), "int32") for n in ("sequence", "length", "free", *(["pending"] if queries.bounded else []))]
    args = [
        Arg("ring", (shape.batch, heads, queries.places, shape.head_dim)),
        *key_args(shape, dtype),
        Arg("slot_position", shape.per_slot, "int32"),
        *control,
        *([Arg("sinks", (heads,))] if scoring.sinks else []),
        Arg("out", (1, heads, shape.slots)),
        Arg("workspace", workspace),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((queries.most, heads), _THREADS) as (t, head, thread):
            _Head(shape, scoring, queries, of, head, thread).measure(t)
        with launch((-(-shape.slots // _TEAMS), heads), _THREADS) as (group, head, thread):
            _Head(shape, scoring, queries, of, head, thread).add_up(group)

    return kernel(name, args, body), workspace


class _Head:
    """Emits the work of a group for one query head."""

    def __init__(
        self,
        shape: CacheShape,
        scoring: Scoring,
        queries: Queries,
        of: dict[str, Buffer],
        head: Expr,
        thread: Expr,
    ) -> None:
        self._shape, self._scoring, self._queries, self._of = shape, scoring, queries, of
        self._head, self._thread = head, thread
        self._lane, self._team = T.Bind(thread % TEAM), T.Bind(thread // TEAM)
        self._seq, self._end = T.Bind(of["sequence"][0]), T.Bind(of["length"][0])
        self._used = used_slots(self._end, shape.slots, of["free"][0])
        count = T.min(self._end, queries.most)
        self._count = T.Bind(T.min(count, of["pending"][0]) if queries.bounded else count)
        self._group = T.Bind(head // (queries.heads // shape.kv_heads))
        self._key = SlotKey(shape, self._lane)

    def measure(self, t: Expr) -> None:
        """Maximum and sum of the weights of query ``t``; a sink is a slot seen first."""
        peak, total = variable(T.float32(_LOWEST), "float32"), variable(T.float32(0.0), "float32")
        with T.serial(0, (self._used + (_TEAMS - 1)) // _TEAMS) as turn:
            slot = T.Bind(turn * _TEAMS + self._team)
            score, seen = self._score(t, self._load(slot), slot)
            higher = T.Bind(T.Select(seen, T.max(peak[0], score), peak[0]))
            added = T.Select(seen, T.exp(score - higher), T.float32(0.0))
            T.buffer_store(total, T.fma(total[0], T.exp(peak[0] - higher), added), [0])
            T.buffer_store(peak, higher, [0])
        sink = self._of["sinks"][self._head] if self._scoring.sinks else T.float32(_LOWEST)
        highest = T.Bind(T.max(group_max(peak[0], self._thread, _THREADS), sink))
        # All lanes of a team have its sum.
        mine = T.Select(self._lane == 0, total[0] * T.exp(peak[0] - highest), T.float32(0.0))
        whole = group_sum(mine, self._thread, _THREADS)
        if self._scoring.sinks:
            whole = whole + T.exp(sink - highest)
        with when(self._thread == 0):
            T.buffer_store(self._of["workspace"], highest, [self._head, t, 0])
            T.buffer_store(self._of["workspace"], whole, [self._head, t, 1])

    def add_up(self, group: Expr) -> None:
        """The weights of all queries of a group's slots, one a team."""
        slot, workspace = T.Bind(group * _TEAMS + self._team), self._of["workspace"]
        place = self._load(slot)
        mass = variable(T.float32(0.0), "float32")
        with T.serial(0, self._count) as t:
            score, seen = self._score(t, place, slot)
            total = T.Bind(workspace[self._head, t, 1])
            # A query that sees no slot pays nothing.
            weight = T.exp(score - workspace[self._head, t, 0]) / T.max(total, T.float32(1e-30))
            T.buffer_store(mass, mass[0] + T.Select(seen, weight, T.float32(0.0)), [0])
        with when(T.And(self._lane == 0, slot < self._shape.slots)):
            T.buffer_store(self._of["out"], mass[0], [0, self._head, slot])

    def _load(self, slot: Expr) -> Expr:
        """Takes the key of a slot, or of one that can be read where there is none; returns which."""
        place = T.Bind(T.max(T.min(slot, self._used - 1), 0))
        self._key.load(self._of["k_cache"], self._of.get("k_scale"), (self._seq, self._group, place))
        return place

    def _score(self, t: Expr, place: Expr, slot: Expr) -> tuple[Expr, Expr]:
        """The score of query ``t`` of those that count, and whether it sees the slot."""
        position = T.Bind(self._end - self._count + t)
        at = (self._seq, self._head, T.Bind(T.max(position, 0) % self._queries.places))
        score = T.Bind(self._key.dot(self._of["ring"], at) * T.float32(self._scoring.scale))
        if self._scoring.softcap:
            cap = T.float32(self._scoring.softcap)
            score = T.Bind(T.tanh(score / cap) * cap)
        known = T.Bind(self._of["slot_position"][self._seq, self._group, place])
        seen = T.And(slot < self._used, known <= position)
        if self._scoring.window:
            seen = T.And(seen, known > position - self._scoring.window)
        return score, T.Bind(seen)
