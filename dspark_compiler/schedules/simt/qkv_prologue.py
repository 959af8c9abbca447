"""From the fused projection to attention in one launch: head norms, rotary positions, and the cache written.

A team takes one head of one token.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.awaited import Ask
from dspark_compiler.schedules.simt.cache_rows import NewSlot, Problem, Tensors, cache_args, form_args, scratch_args
from dspark_compiler.schedules.simt.stored import copy_line, narrow
from dspark_compiler.schedules.simt.threads import TEAM, launch, registers, team_sum
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 128
_TEAMS = _THREADS // TEAM


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
            head = Head(shape.head_dim, work, tensors, HeadPlace.of(shape, row, token, number), lane)
            slot = NewSlot(problem, tensors, row, token)
            kv_head = T.Bind(number - shape.heads)
            value_head = T.Bind(kv_head - shape.kv_heads)

            # All teams take part in the sums of a norm, whatever they are for.
            head.load()
            head.rotate()
            with when(number < shape.heads):
                head.for_lines(lambda d, line: head.copy_to(tensors["q"], (row, number, token, d), line))
            with when(T.And(T.And(kv_head >= 0, kv_head < shape.kv_heads), slot.fits)):
                keys = head.narrowed(dtype)
                head.for_lines(lambda d, line: slot.copy("k", kv_head, d, keys, line))
            with when(T.And(T.And(value_head >= 0, value_head < shape.kv_heads), slot.fits)):
                start = (shape.heads + shape.kv_heads) * shape.head_dim + value_head * shape.value_dim
                for d in range(0, shape.value_dim, TEAM):
                    element = T.Bind(d + lane)
                    slot.store("v", value_head, element, tensors["x"][row * shape.width + token, start + element])
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


@dataclass(frozen=True)
class HeadPlace:
    """A head of token ``token`` of the call's row ``row``: columns from ``start`` on of row ``line`` of the projection.

    ``norms`` are the names of the norm weights that it may have: the first whose condition holds, else the last.
    """

    row: Expr
    token: Expr
    line: Expr
    start: Expr
    norms: Sequence[tuple[Expr, str]]

    @staticmethod
    def of(shape: AttentionShape, row: Expr, token: Expr, number: Expr) -> "HeadPlace":
        """That of a number among queries and keys; of values, which are not normed, one that nobody stores."""
        line = T.Bind(row * shape.width + token)
        start = T.Bind(T.min(number, shape.heads + shape.kv_heads - 1) * shape.head_dim)
        is_query = number < shape.heads
        return HeadPlace(row, token, line, start, [(is_query, "q_weight"), (T.Not(is_query), "k_weight")])


class Head:
    """A team's head of a token, ``dim`` numbers of it, which are normed and rotated."""

    def __init__(self, dim: int, work: Prologue, tensors: Tensors, place: HeadPlace, lane: Expr) -> None:
        self._dim, self._work, self._tensors, self._place, self._lane = dim, work, tensors, place, lane
        self._half, self._halves = dim // 2, Halves(dim)
        self._each, self._lines = self._halves.each, range(2 * self._halves.turns)
        self._values = self._registers()
        self.asks = [self._ask(self._values, line, "x", place.line, base=place.start) for line in self._lines]
        """For its numbers, of which there are none before."""
        self._weights = self._registers() if work.eps is not None else None
        self._tables = {name: self._registers() for name in ("cos", "sin")} if work.rope else {}

    def load(self) -> None:
        """Its numbers, where they are there, and what they are multiplied by: all is on its way before any is used."""
        for ask in self.asks:
            ask.load()
        self.load_factors()

    def load_factors(self) -> None:
        """What its numbers are multiplied by."""
        if self._weights is not None:
            self._load_norm(self._weights, self._place.norms)
        for name, table in self._tables.items():
            self._load(table, name, self._place.row, T.int32(0), self._place.token)

    def rotate(self) -> None:
        """Norm and rotation; all of a subgroup get here."""
        if self._weights is not None:
            scale = self._inverse_root()
            for line in self._lines:
                for e in range(self._each):
                    value = self._values[line, e] * scale * self._weights[line, e]
                    T.buffer_store(self._values, value, [line, e])
        if not self._tables:
            return
        cos, sin = self._tables["cos"], self._tables["sin"]
        for low in self._lines[::2]:
            for e in range(self._each):
                one, two = T.Bind(self._values[low, e]), T.Bind(self._values[low + 1, e])  # in both halves
                T.buffer_store(self._values, one * cos[low, e] - two * sin[low, e], [low, e])
                T.buffer_store(self._values, two * cos[low + 1, e] + one * sin[low + 1, e], [low + 1, e])

    def for_lines(self, emit: Callable[[Expr, int], None]) -> None:
        """Calls emit(d, line) for each line, whose first number is element d."""
        for line in self._lines:
            inside = self._halves.first(line // 2, self._lane) < self._half
            with when(inside) if self._half % TEAM else nullcontext():
                emit(T.Bind(self._halves.element(line, self._lane)), line)

    def copy_to(self, target: Buffer, place: tuple[Expr, ...], line: int) -> None:
        """target[place] and behind it = a line."""
        copy_line(target, place, self._values, line)

    def narrowed(self, dtype: str) -> Buffer:
        """All lines as they are stored."""
        stored = registers((len(self._lines), self._each), dtype)
        for line in self._lines:
            for e in range(self._each):
                T.buffer_store(stored, narrow(self._values[line, e], dtype), [line, e])
        return stored

    def _registers(self) -> Buffer:
        return registers((len(self._lines), self._each))

    def _load_norm(self, target: Buffer, norms: Sequence[tuple[Expr, str]]) -> None:
        (condition, name), *others = norms
        if not others:
            self._load(target, name)
            return
        with T.If(condition):
            with T.Then():
                self._load(target, name)
            with T.Else():
                self._load_norm(target, others)

    def _load(self, target: Buffer, name: str, *outer: Expr) -> None:
        for line in self._lines:
            self._ask(target, line, name, *outer).load()

    def _ask(self, target: Buffer, line: int, name: str, *outer: Expr, base: Expr | int = 0) -> Ask:
        element = base + self._halves.element(line, self._lane)
        return Ask(target, (line, 0), self._tensors[name], (*outer, T.Bind(element)), self._each)

    def _inverse_root(self) -> Expr:
        """1 / sqrt(mean of squares + eps)."""
        assert self._work.eps is not None
        total = registers(1)
        T.buffer_store(total, T.float32(0.0), [0])
        for line in self._lines:
            for e in range(self._each):
                square = self._values[line, e] * self._values[line, e]
                inside = self._halves.first(line // 2, self._lane) < self._half
                if self._half % TEAM:
                    square = T.Select(inside, square, T.float32(0.0))
                T.buffer_store(total, total[0] + square, [0])
        return inverse_root(total[0], self._dim, self._work.eps)
