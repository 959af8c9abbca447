"""Attention of a draft block on the CPU: all query rows of a key/value head at once, a vector lane each.

Keys and values lie row by row in a ring, as they were made. A block has few queries and sees everything, so rows of
queries are the lanes: each element of a key or value is broadcast, and both products are multiply-adds without a
horizontal sum. Running softmax over blocks of keys after Milakov & Gimelshein 2018 (arXiv 1805.02867).
"""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, fill, kernel, local, vector, when

_BLOCK = 128  # keys between two looks at the running maximum
_MASKED = -1e30


@dataclass(frozen=True)
class BlockShape:
    """Sizes of the operator: q [batch,heads,width,head_dim], ``fresh`` keys of the block, a ring of ``places``."""

    batch: int
    heads: int
    kv_heads: int
    width: int
    fresh: int
    head_dim: int
    value_dim: int
    places: int
    spare: int

    @property
    def rows(self) -> int:
        """Query rows that share a key/value head."""
        return self.heads // self.kv_heads * self.width


@dataclass(frozen=True)
class _Operands:
    q: Buffer
    k: Buffer
    v: Buffer
    k_ring: Buffer
    v_ring: Buffer
    out: Buffer


def block_attention(name: str, shape: BlockShape, scale: float, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Attention of each block to its ring's last min(length, W - spare) tokens and to all of itself.

    Arguments: q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv], k_ring [B,G,W,D], v_ring [B,G,W,Dv], length int32 [B], out
    [B,S,H,Dv].
    """
    parts = _parts(shape.rows, isa.lanes)

    def body(*buffers: Buffer) -> None:
        *tensors, length, out = buffers
        operands = _Operands(*tensors, out)
        with T.parallel(0, shape.batch * shape.kv_heads * len(parts)) as task:
            part = T.Bind(task % len(parts))
            head = T.Bind(task // len(parts) % shape.kv_heads)
            row = T.Bind(task // (len(parts) * shape.kv_heads))
            for lanes in sorted({width for _, width in parts}):
                mine = [i for i, (_, width) in enumerate(parts) if width == lanes]
                with when(T.And(part >= mine[0], part <= mine[-1])):
                    emitter = _Part(shape, scale, isa, operands, (row, head), part * isa.lanes, lanes)
                    emitter.emit(length[row])

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
    return kernel(name, args, body)


def _parts(rows: int, lanes: int) -> list[tuple[int, int]]:
    """First row and lanes of each task: whole vectors, then one of the least power of two that holds the rest."""
    parts = [(first, lanes) for first in range(0, rows - rows % lanes, lanes)]
    if rest := rows % lanes:
        parts.append((rows - rest, 1 << (rest - 1).bit_length()))
    return parts


class _Part:
    """Emits the attention of ``lanes`` query rows of one key/value head, from row ``first`` on."""

    def __init__(
        self,
        shape: BlockShape,
        scale: float,
        isa: VectorIsa,
        operands: _Operands,
        at: tuple[Expr, Expr],
        first: Expr,
        lanes: int,
    ) -> None:
        self._shape, self._scale, self._op, self._at = shape, scale, operands, at
        self._first, self._lanes = first, lanes
        self._together = isa.registers // 2  # sums kept in registers
        self._queries, self._acc = local((shape.head_dim, lanes)), local((shape.value_dim, lanes))
        self._scores = local((_BLOCK, lanes))
        self._maximum, self._total = local(lanes), local(lanes)

    def emit(self, length: Expr) -> None:
        """The ring's live rows, at most two runs of places; the block's own; then the division by all weights."""
        shape = self._shape
        self._start()
        end = T.Bind(length)
        count = T.Bind(T.min(end, shape.places - shape.spare))
        start = T.Bind((end - count) % shape.places)
        before = T.Bind(T.min(count, shape.places - start))
        with T.serial(0, 2) as run:
            first = T.Bind(T.Select(run == 0, start, T.int32(0)))
            self._attend(self._op.k_ring, self._op.v_ring, first, T.Select(run == 0, before, count - before))
        self._attend(self._op.k, self._op.v, T.int32(0), T.int32(shape.fresh))
        self._finish()

    def _start(self) -> None:
        shape = self._shape
        row, head = self._at
        with T.serial(0, self._lanes) as lane:
            # Lanes past the last row repeat it.
            number = T.Bind(T.min(self._first + lane, shape.rows - 1))
            query, token = head * (shape.rows // shape.width) + number // shape.width, number % shape.width
            with T.serial(0, shape.head_dim) as d:
                value = self._op.q[row, query, token, d] * T.float32(self._scale)
                T.buffer_store(self._queries, value, [d, lane])
        fill(self._maximum, 0, self._lanes, self._lanes, _MASKED)
        fill(self._total, 0, self._lanes, self._lanes, 0.0)
        with T.serial(0, shape.value_dim) as d, vector(self._lanes) as lane:
            T.buffer_store(self._acc, T.float32(0.0), [d, lane])

    def _finish(self) -> None:
        shape = self._shape
        row, head = self._at
        with vector(self._lanes) as lane:
            T.buffer_store(self._total, T.float32(1.0) / self._total[lane], [lane])
        with T.serial(0, self._lanes) as lane:
            number = T.Bind(self._first + lane)
            with when(number < shape.rows):
                query, token = head * (shape.rows // shape.width) + number // shape.width, number % shape.width
                with T.serial(0, shape.value_dim) as d:
                    value = self._acc[d, lane] * self._total[lane]
                    T.buffer_store(self._op.out, value, [row, token, query, d])

    def _attend(self, keys: Buffer, values: Buffer, first: Expr, count: Expr) -> None:
        """Takes in ``count`` keys and values from place ``first`` on."""
        count = T.Bind(count)
        with T.serial(0, (count + (_BLOCK - 1)) // _BLOCK) as block:
            base = T.Bind(first + block * _BLOCK)
            here = T.Bind(T.min(count - block * _BLOCK, _BLOCK))
            groups = T.Bind(here // self._together)
            with T.serial(0, groups) as group:
                self._score(keys, base, group * self._together, self._together)
            with T.serial(0, here - groups * self._together) as rest:
                self._score(keys, base, groups * self._together + rest, 1)
            self._softmax(here)
            self._add_values(values, base, here)

    def _score(self, keys: Buffer, base: Expr, first: Expr, together: int) -> None:
        """scores[first + i, :] = queries . keys[base + first + i] for i < ``together``."""
        lanes = self._lanes
        sums = [local(lanes) for _ in range(together)]
        for acc in sums:
            fill(acc, 0, lanes, lanes, 0.0)
        with T.serial(0, self._shape.head_dim) as d:
            for i, acc in enumerate(sums):
                with vector(lanes) as lane:
                    product = self._queries[d, lane] * keys[*self._at, base + first + i, d]
                    T.buffer_store(acc, acc[lane] + product, [lane])
        for i, acc in enumerate(sums):
            with vector(lanes) as lane:
                T.buffer_store(self._scores, acc[lane], [first + i, lane])

    def _softmax(self, count: Expr) -> None:
        """Turns ``count`` scores a lane into weights relative to the running maximum; rescales what was summed."""
        lanes, scores = self._lanes, self._scores
        peak, decay = local(lanes), local(lanes)
        with vector(lanes) as lane:
            T.buffer_store(peak, self._maximum[lane], [lane])
        with T.serial(0, count) as i, vector(lanes) as lane:
            T.buffer_store(peak, T.max(peak[lane], scores[i, lane]), [lane])
        with vector(lanes) as lane:
            T.buffer_store(decay, vector_math.exp(self._maximum[lane] - peak[lane]), [lane])
        with vector(lanes) as lane:
            T.buffer_store(self._maximum, peak[lane], [lane])
        with vector(lanes) as lane:
            T.buffer_store(self._total, self._total[lane] * decay[lane], [lane])
        with T.serial(0, count) as i, vector(lanes) as lane:
            T.buffer_store(scores, vector_math.exp(scores[i, lane] - peak[lane]), [i, lane])
            T.buffer_store(self._total, self._total[lane] + scores[i, lane], [lane])
        with T.serial(0, self._shape.value_dim) as d, vector(lanes) as lane:
            T.buffer_store(self._acc, self._acc[d, lane] * decay[lane], [d, lane])

    def _add_values(self, values: Buffer, base: Expr, count: Expr) -> None:
        """acc[d, :] += sum over ``count`` keys, in order, of weight * value."""
        lanes, dim = self._lanes, self._shape.value_dim
        together = next(n for n in range(self._together, 0, -1) if dim % n == 0)
        with T.serial(0, dim // together) as chunk:
            sums = [local(lanes) for _ in range(together)]
            for i, acc in enumerate(sums):
                with vector(lanes) as lane:
                    T.buffer_store(acc, self._acc[chunk * together + i, lane], [lane])
            with T.serial(0, count) as key:
                for i, acc in enumerate(sums):
                    with vector(lanes) as lane:
                        product = self._scores[key, lane] * values[*self._at, base + key, chunk * together + i]
                        T.buffer_store(acc, acc[lane] + product, [lane])
            for i, acc in enumerate(sums):
                with vector(lanes) as lane:
                    T.buffer_store(self._acc, acc[lane], [chunk * together + i, lane])
