"""Attention of a draft block to a ring and to itself: teams take keys in turn, each with a running softmax.

A work group has a few query rows of a key/value head. Running softmax after Milakov & Gimelshein 2018 (arXiv
1805.02867).
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.simt.group_counts import held, variable
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, registers, shared, team_sum
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_THREADS = 128
_TEAMS = _THREADS // TEAM
_MOST_ROWS = 4  # query rows of a work group
_MOST_REGISTERS = 64  # floats of queries and of sums that a thread holds
_LOWEST = -1e30  # finite: a team may have no key at all


def block_attention(name: str, shape: BlockShape, scale: float) -> tvm.tirx.PrimFunc:
    """Attention of each block to its ring's last min(length, W - spare) tokens and to all of itself.

    Arguments: q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv], k_ring [B,G,W,D], v_ring [B,G,W,Dv], length int32 [B], out
    [B,S,H,Dv].
    """
    block = max(1, min(shape.rows, _MOST_ROWS, _MOST_REGISTERS * TEAM // (shape.head_dim + shape.value_dim)))
    batch, kv_heads, places = shape.batch, shape.kv_heads, shape.places
    args = [
        Arg("q", (batch, shape.heads, shape.width, shape.head_dim)),
        Arg("k", (batch, kv_heads, shape.fresh, shape.head_dim)),
        Arg("v", (batch, kv_heads, shape.fresh, shape.value_dim)),
        Arg("k_ring", (batch, kv_heads, places, shape.head_dim)),
        Arg("v_ring", (batch, kv_heads, places, shape.value_dim)),
        Arg("length", (batch,), "int32"),
        Arg("out", (batch, shape.width, shape.heads, shape.value_dim)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((-(-shape.rows // block), kv_heads, batch), _THREADS) as (part, head, row, thread):
            work = _Rows(shape, of, (row, head), T.Bind(part * block), block, thread)
            work.begin(scale)
            end = T.Bind(of["length"][row])
            count = T.Bind(T.min(end, places - shape.spare))
            work.attend("k_ring", "v_ring", count, lambda i: (end - count + i) % places)
            work.attend("k", "v", T.int32(shape.fresh), lambda i: i)
            work.put_together()

    return kernel(name, args, body)


class _Rows:
    """Emits the work of a group: query rows first..first+block of a key/value head; row m is token m % S."""

    def __init__(
        self, shape: BlockShape, of: dict[str, Buffer], at: tuple[Expr, Expr], first: Expr, block: int, thread: Expr
    ) -> None:
        self._shape, self._of, self._at, self._first, self._block = shape, of, at, first, block
        self._thread, self._lane, self._team = thread, T.Bind(thread % TEAM), T.Bind(thread // TEAM)
        # A lane has the elements lane, lane + 8, … of keys and values.
        self._keys, self._values = -(-shape.head_dim // TEAM), -(-shape.value_dim // TEAM)
        self._q, self._sums = registers((block, self._keys)), registers((block, self._values))
        self._peak, self._total = registers(block), registers(block)

    def begin(self, scale: float) -> None:
        """Queries, scaled, and empty sums."""
        for i in range(self._block):
            head, token = self._query(T.min(self._first + i, self._shape.rows - 1))
            for n in range(self._keys):
                d = T.min(n * TEAM + self._lane, self._shape.head_dim - 1)
                value = self._of["q"][self._at[0], head, token, d] * T.float32(scale)
                inside = n * TEAM + self._lane < self._shape.head_dim
                T.buffer_store(self._q, T.Select(inside, value, T.float32(0.0)), [i, n])
            for n in range(self._values):
                T.buffer_store(self._sums, T.float32(0.0), [i, n])
            T.buffer_store(self._peak, T.float32(_LOWEST), [i])
            T.buffer_store(self._total, T.float32(0.0), [i])

    def attend(self, keys: str, values: str, count: Expr, place_of: Callable[[Expr], Expr]) -> None:
        """Takes in ``count`` keys and values of a sequence, number i at place_of(i)."""
        k, v, shape = self._of[keys], self._of[values], self._shape
        with T.serial(0, (count + (_TEAMS - 1)) // _TEAMS) as turn:
            number = T.Bind(turn * _TEAMS + self._team)
            place = held(place_of(T.min(number, count - 1)), "int32")
            key, value = registers(self._keys), registers(self._values)
            for n in range(self._keys):
                d = T.min(n * TEAM + self._lane, shape.head_dim - 1)
                T.buffer_store(key, k[(*self._at, place, d)], [n])
            for n in range(self._values):
                d = T.min(n * TEAM + self._lane, shape.value_dim - 1)
                T.buffer_store(value, v[(*self._at, place, d)], [n])
            for i in range(self._block):
                self._take(i, key, value, number < count)

    def put_together(self) -> None:
        """The sums of all teams, over all weights."""
        shape, block = self._shape, self._block
        peaks, totals = shared((_TEAMS, block)), shared((_TEAMS, block))
        sums = shared((_TEAMS, block, shape.value_dim))
        for i in range(block):
            for n in range(self._values):
                d = T.Bind(n * TEAM + self._lane)
                with when(d < shape.value_dim):
                    T.buffer_store(sums, self._sums[i, n], [self._team, i, d])
            with when(self._lane == 0):
                T.buffer_store(peaks, self._peak[i], [self._team, i])
                T.buffer_store(totals, self._total[i], [self._team, i])
        barrier()
        with T.serial(0, -(-block * shape.value_dim // _THREADS)) as turn:
            unit = T.Bind(turn * _THREADS + self._thread)
            i, d = T.Bind(unit // shape.value_dim), T.Bind(unit % shape.value_dim)
            m = T.Bind(self._first + i)
            with when(T.And(unit < block * shape.value_dim, m < shape.rows)):
                peak = variable(T.float32(_LOWEST), "float32")
                total, value = variable(T.float32(0.0), "float32"), variable(T.float32(0.0), "float32")
                with T.serial(0, _TEAMS) as team:
                    T.buffer_store(peak, T.max(peak[0], peaks[team, i]), [0])
                with T.serial(0, _TEAMS) as team:
                    weight = held(T.exp(peaks[team, i] - peak[0]), "float32")
                    T.buffer_store(total, total[0] + totals[team, i] * weight, [0])
                    T.buffer_store(value, value[0] + sums[team, i, d] * weight, [0])
                head, token = self._query(m)
                T.buffer_store(self._of["out"], value[0] / total[0], [self._at[0], token, head, d])

    def _take(self, i: int, key: Buffer, value: Buffer, there: Expr) -> None:
        """One key and value into row ``i``, where there is one."""
        dot = variable(T.float32(0.0), "float32")
        for n in range(self._keys):
            T.buffer_store(dot, T.fma(self._q[i, n], key[n], dot[0]), [0])
        score = held(team_sum(dot[0]), "float32")
        peak = held(T.Select(there, T.max(self._peak[i], score), self._peak[i]), "float32")
        decay = held(T.exp(self._peak[i] - peak), "float32")
        weight = held(T.Select(there, T.exp(score - peak), T.float32(0.0)), "float32")
        T.buffer_store(self._peak, peak, [i])
        T.buffer_store(self._total, T.fma(self._total[i], decay, weight), [i])
        for n in range(self._values):
            T.buffer_store(self._sums, T.fma(weight, value[n], self._sums[i, n] * decay), [i, n])

    def _query(self, m: Expr) -> tuple[Expr, Expr]:
        """Query head and token of a row."""
        shape = self._shape
        return T.Bind(self._at[1] * (shape.heads // shape.kv_heads) + m // shape.width), T.Bind(m % shape.width)
