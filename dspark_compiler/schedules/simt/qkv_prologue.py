"""From the fused projection to attention in one launch: head norms, rotary positions, and the cache written.

A team takes one head of one token.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.cache_rows import NewSlot, Problem, Tensors, cache_args, form_args, scratch_args
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import TEAM, launch, registers, team_sum
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 128
_TEAMS = _THREADS // TEAM
Store = Callable[[Expr, Expr], None]  # of an element's number and itself


@dataclass(frozen=True)
class Prologue:
    """What happens to queries and keys before they are stored."""

    eps: float | None = None  # of the RMSNorm over each head; None: there is none
    rope: bool = True


@made_once
def qkv_prologue(name: str, shape: AttentionShape, work: Prologue, dtype: str, form: CacheForm) -> tvm.tirx.PrimFunc:
    """Kernel that reads the projection x and writes q float32 [b,H,S,D] and the new keys and values.

    Arguments: x float32 [b S, H D + G D + G Dv], [q_weight, k_weight float32 [D] with eps], [cos, sin float32
    [b,1,S,D] with rope], k_cache [B,G,C,D], v_cache [B,G,C,Dv] of ``dtype``, then k_scratch, v_scratch [B,G,N,*] and
    length int32 [b] if the shape has scratch, else sequence, length, count int32 [b]; [free int32 [b]], [slot_position
    int32 [B,G,C]], q. Keys and values go where the attention of the same shape (``written_attention``) looks for them.
    """
    problem = Problem(shape, Scoring(1.0), form, dtype)
    args = _args(shape, work, dtype, form)
    heads = shape.heads + 2 * shape.kv_heads

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        with launch((-(-heads // _TEAMS), shape.width, shape.rows), _THREADS) as (group, token, row, thread):
            number, lane = T.Bind(group * _TEAMS + thread // TEAM), T.Bind(thread % TEAM)
            head = Head(shape, work, tensors, (row, token), lane)
            slot = NewSlot(problem, tensors, row, token)
            kv_head = T.Bind(number - shape.heads)
            value_head = T.Bind(kv_head - shape.kv_heads)

            def store_query(d: Expr, value: Expr) -> None:
                with when(number < shape.heads):
                    T.buffer_store(tensors["q"], value, [row, number, token, d])

            def store_key(d: Expr, value: Expr) -> None:
                with when(T.And(T.And(kv_head >= 0, kv_head < shape.kv_heads), slot.fits)):
                    slot.store("k", kv_head, d, value)

            # All teams take part in the sums of a norm, whatever they are for.
            head.rotate(number, store_query, store_key)
            with when(T.And(T.And(value_head >= 0, value_head < shape.kv_heads), slot.fits)):
                start = (shape.heads + shape.kv_heads) * shape.head_dim + value_head * shape.value_dim
                head.copy(start, lambda d, value: slot.store("v", value_head, d, value))
                slot.store_position(value_head, lane == 0)

    return kernel(name, args, body)


def projection_args(shape: AttentionShape, work: Prologue) -> list[Arg]:
    """The projection, and what queries and keys are normed and rotated by."""
    columns = (shape.heads + shape.kv_heads) * shape.head_dim + shape.kv_heads * shape.value_dim
    table = (shape.rows, 1, shape.width, shape.head_dim)
    return [
        Arg("x", (shape.rows * shape.width, columns)),
        *([Arg(f"{each}_weight", (shape.head_dim,)) for each in "qk"] if work.eps is not None else []),
        *([Arg(each, table) for each in ("cos", "sin")] if work.rope else []),
    ]


def _args(shape: AttentionShape, work: Prologue, dtype: str, form: CacheForm) -> list[Arg]:
    control = ("length",) if shape.scratch else ("sequence", "length", "count")
    return [
        *projection_args(shape, work),
        *cache_args(shape, dtype),
        *scratch_args(shape, dtype),
        *(Arg(each, (shape.rows,), "int32") for each in control),
        *form_args(shape, form, shape.rows),
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim)),
    ]


@dataclass(frozen=True)
class Halves:
    """How a team's lanes share a head: each has elements of its first half, some in a row, and those they turn with."""

    dim: int

    @property
    def each(self) -> int:
        """Elements in a row: whole accesses where lanes share the half evenly."""
        return max(each for each in (1, 2, 4) if self.dim // 2 % (TEAM * each) == 0 or each == 1)

    @property
    def turns(self) -> int:
        """Times ``each`` elements of a half that a lane has."""
        return -(-(self.dim // 2) // (TEAM * self.each))

    def first(self, turn: int, lane: Expr) -> Expr:
        """The first of a lane's elements of a turn, in the first half or past it."""
        return (turn * TEAM + lane) * self.each

    def element(self, line: int, lane: Expr) -> Expr:
        """The first of a line, which is a turn of one of the halves; of what lies past the half its last."""
        first, half = self.first(line // 2, lane), self.dim // 2
        return line % 2 * half + (T.min(first, half - 1) if half % TEAM else first)


def inverse_root(squares: Expr, dim: int, eps: float) -> Expr:
    """1 / sqrt(mean of squares + eps) from each lane's part of their sum."""
    mean = team_sum(squares) * T.float32(1.0 / dim) + T.float32(eps)
    return T.Bind(T.float32(1.0) / T.sqrt(mean))


class Head:
    """A team's head."""

    def __init__(
        self, shape: AttentionShape, work: Prologue, tensors: Tensors, token: tuple[Expr, Expr], lane: Expr
    ) -> None:
        self._shape, self._work, self._tensors, self._token, self._lane = shape, work, tensors, token, lane
        self._row = T.Bind(token[0] * shape.width + token[1])
        self._half, self._halves = shape.head_dim // 2, Halves(shape.head_dim)
        self._each, self._turns = self._halves.each, self._halves.turns

    def rotate(self, number: Expr, *stores: Store) -> None:
        """Norm and rotation of the query or key head ``number``; of others, numbers nobody stores."""
        shape, each = self._shape, self._each
        start = T.Bind(T.min(number, shape.heads + shape.kv_heads - 1) * shape.head_dim)
        # All is asked for before anything is stored: what is loaded after a store waits for it.
        values = self._loaded("x", lambda d: (self._row, start + d))
        weights = None if self._work.eps is None else self._weights(number)
        tables = [self._loaded(name, self._in_table) for name in ("cos", "sin")] if self._work.rope else None
        scale = self._inverse_root(values)
        for turn in range(self._turns):
            with when(self._first(turn) < self._half) if self._half % TEAM else nullcontext():
                for e in range(each):
                    at = (2 * turn, e), (2 * turn + 1, e)  # in both halves
                    low, high = (self._normed(values, weights, scale, place) for place in at)
                    if tables is not None:
                        cos, sin = tables
                        turned = low * cos[at[0]] - high * sin[at[0]], high * cos[at[1]] + low * sin[at[1]]
                        low, high = (T.Bind(value) for value in turned)
                    for store in stores:
                        store(T.Bind(self._first(turn) + e), low)
                        store(T.Bind(self._first(turn) + e + self._half), high)

    def copy(self, start: Expr, store: Store) -> None:
        """A value head as it is."""
        for first in range(0, self._shape.value_dim, TEAM):
            d = T.Bind(first + self._lane)
            store(d, self._tensors["x"][self._row, start + d])

    def _first(self, turn: int) -> Expr:
        """The first of a lane's elements."""
        return self._halves.first(turn, self._lane)

    def _loaded(self, name: str, place: Callable[[Expr], tuple[Expr, ...]]) -> Buffer:
        """A lane's elements d of a tensor at place(d): a line for each turn and half."""
        found = registers((self._turns * 2, self._each))
        for line in range(self._turns * 2):
            copy(found, (line, 0), self._tensors[name], place(self._halves.element(line, self._lane)), self._each)
        return found

    def _in_table(self, d: Expr) -> tuple[Expr, ...]:
        row, token = self._token
        return row, T.int32(0), token, d

    def _weights(self, number: Expr) -> Buffer:
        """Those of the norm of head ``number``."""
        query, key = (self._loaded(f"{name}_weight", lambda d: (d,)) for name in "qk")
        for line in range(self._turns * 2):
            for e in range(self._each):
                T.buffer_store(query, T.Select(number < self._shape.heads, query[line, e], key[line, e]), [line, e])
        return query

    def _normed(self, values: Buffer, weights: Buffer | None, scale: Expr, place: tuple[int, int]) -> Expr:
        return T.Bind(values[place] if weights is None else values[place] * scale * weights[place])

    def _inverse_root(self, values: Buffer) -> Expr:
        """1 / sqrt(mean of squares + eps), if there is a norm."""
        if self._work.eps is None:
            return T.float32(1.0)
        total = registers(1)
        T.buffer_store(total, T.float32(0.0), [0])
        for line in range(self._turns * 2):
            for e in range(self._each):
                square = values[line, e] * values[line, e]
                inside = self._first(line // 2) < self._half
                T.buffer_store(total, total[0] + T.Select(inside, square, T.float32(0.0)), [0])
        return inverse_root(total[0], self._shape.head_dim, self._work.eps)
