"""Attention over cache slots on the CPU: blocks of slots, running softmax, grouped queries.

Cache layout, for a sequence and a key/value head:
- keys [C/L, D, L], panels of L slots (L one vector), so that scores are L-wide multiply-adds without a horizontal sum;
- values [C, D], so that the weighted sum is D-wide multiply-adds.

Running softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867) as FlashAttention tiles it (arXiv 2205.14135). Blocks
start at multiples of BLOCK whatever the number of query rows, a row's sums run over slots in order, and a slot masked for
a row adds an exact zero. So a token's output is bit for bit the same from decode, verify or a prefill chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, fill, kernel, local, vector, when, widest_vector

BLOCK = 128  # slots a softmax block holds
_MASKED = -1e30  # finite: a row of a tile may meet blocks it does not see before the first it does


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention call; lengths in tokens or slots."""

    rows: int  # b, sequences of the call
    width: int  # S, new tokens a sequence
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # D
    value_dim: int  # Dv
    batch: int  # B, sequences the cache holds
    slots: int  # C, a multiple of the vector length
    scratch: int  # N, scratch rows a sequence; 0 when new tokens go to live slots

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Scoring:
    """What happens to q.k before the softmax."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False


def key_cache_shape(batch: int, kv_heads: int, slots: int, head_dim: int, isa: VectorIsa) -> tuple[int, ...]:
    """Physical shape of a layer's keys; slots rounded up to whole panels."""
    return (batch, kv_heads, -(-slots // isa.lanes), head_dim, isa.lanes)


def append_attention(name: str, shape: AttentionShape, scoring: Scoring, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Writes the new keys and values into live slots, then attends to live slots only.

    Arguments: q, k, v, k_cache, v_cache, sequence, length, count, [sinks], out.
    """

    def body(q: Buffer, k: Buffer, v: Buffer, k_cache: Buffer, v_cache: Buffer, *rest: Buffer) -> None:
        sequence, length, count = rest[:3]
        sinks = rest[3] if scoring.sinks else None
        _append(shape, isa, (k, v), (k_cache, v_cache), sequence, length, count)
        with _tasks(shape, isa) as (row, head, first, tile):
            seq = T.Bind(sequence[row])
            # Rows past `count` are padding; they stay within the cache so that no slot out of bounds is read.
            end = T.Bind(T.max(T.min(length[row] + T.max(count[row], 1), shape.slots), 1))
            attend = _Attend(shape, scoring, isa, q, k_cache, v_cache, None, sinks, rest[-1])
            attend.tile(row, seq, head, first, tile, length[row], end)

    control = [Arg(n, (shape.rows,), "int32") for n in ("sequence", "length", "count")]
    return kernel(name, [*_tensor_args(shape, isa), *control, *_sink_arg(shape, scoring), _out_arg(shape)], body)


def scratch_attention(name: str, shape: AttentionShape, scoring: Scoring, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Copies the new keys and values to scratch, then attends to live slots and the new tokens; live slots unchanged.

    Arguments: q, k, v, k_cache, v_cache, k_scratch, v_scratch, length, [sinks], out.
    """

    def body(q: Buffer, k: Buffer, v: Buffer, k_cache: Buffer, v_cache: Buffer, *rest: Buffer) -> None:
        k_scratch, v_scratch, length = rest[:3]
        sinks = rest[3] if scoring.sinks else None
        _copy_to_scratch(shape, isa, (k, v), (k_scratch, v_scratch))
        with _tasks(shape, isa) as (row, head, first, tile):
            end = T.Bind(length[row] + shape.width)
            attend = _Attend(shape, scoring, isa, q, k_cache, v_cache, (k, v), sinks, rest[-1])
            attend.tile(row, row, head, first, tile, length[row], end)

    scratch = [
        Arg("k_scratch", (shape.batch, shape.kv_heads, shape.scratch, shape.head_dim)),
        Arg("v_scratch", (shape.batch, shape.kv_heads, shape.scratch, shape.value_dim)),
        Arg("length", (shape.rows,), "int32"),
    ]
    return kernel(name, [*_tensor_args(shape, isa), *scratch, *_sink_arg(shape, scoring), _out_arg(shape)], body)


def commit_scratch(name: str, shape: AttentionShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Moves the first accepted[r] scratch rows of each sequence to live slots from length[r].

    Arguments: k_cache, v_cache, k_scratch, v_scratch, length, accepted.
    """

    def body(k_cache: Buffer, v_cache: Buffer, k_scratch: Buffer, v_scratch: Buffer, *control: Buffer) -> None:
        length, accepted = control
        with T.serial(0, shape.batch) as row, T.serial(0, shape.kv_heads) as head:
            with T.serial(0, T.min(accepted[row], shape.scratch)) as i:
                slot = T.Bind(length[row] + i)
                with when(slot < shape.slots):
                    _write_slot(shape, isa, (k_scratch, v_scratch), (k_cache, v_cache), (row, head, i), row, slot)

    args = _cache_args(shape, isa) + [
        Arg("k_scratch", (shape.batch, shape.kv_heads, shape.scratch, shape.head_dim)),
        Arg("v_scratch", (shape.batch, shape.kv_heads, shape.scratch, shape.value_dim)),
        Arg("length", (shape.batch,), "int32"),
        Arg("accepted", (shape.batch,), "int32"),
    ]
    return kernel(name, args, body)


def _cache_args(shape: AttentionShape, isa: VectorIsa) -> list[Arg]:
    return [
        Arg("k_cache", key_cache_shape(shape.batch, shape.kv_heads, shape.slots, shape.head_dim, isa)),
        Arg("v_cache", (shape.batch, shape.kv_heads, shape.slots, shape.value_dim)),
    ]


def _tensor_args(shape: AttentionShape, isa: VectorIsa) -> list[Arg]:
    return [
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim)),
        Arg("k", (shape.rows, shape.kv_heads, shape.width, shape.head_dim)),
        Arg("v", (shape.rows, shape.kv_heads, shape.width, shape.value_dim)),
        *_cache_args(shape, isa),
    ]


def _sink_arg(shape: AttentionShape, scoring: Scoring) -> list[Arg]:
    return [Arg("sinks", (shape.heads,))] if scoring.sinks else []


def _out_arg(shape: AttentionShape) -> Arg:
    return Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim))


def _write_slot(
    shape: AttentionShape,
    isa: VectorIsa,
    source: tuple[Buffer, Buffer],
    cache: tuple[Buffer, Buffer],
    at: tuple[Expr, Expr, Expr],
    seq: Expr,
    slot: Expr,
) -> None:
    """Puts key and value number ``at`` = (row, head, token) of ``source`` into a live slot."""
    _, head, _ = at
    panel, lane = slot // isa.lanes, slot % isa.lanes
    with T.serial(0, shape.head_dim) as d:
        T.buffer_store(cache[0], source[0][*at, d], [seq, head, panel, d, lane])
    lanes = widest_vector(shape.value_dim, isa.lanes)
    with T.serial(0, shape.value_dim // lanes) as chunk, vector(lanes) as d:
        T.buffer_store(cache[1], source[1][*at, chunk * lanes + d], [seq, head, slot, chunk * lanes + d])


def _append(
    shape: AttentionShape,
    isa: VectorIsa,
    new: tuple[Buffer, Buffer],
    cache: tuple[Buffer, Buffer],
    sequence: Buffer,
    length: Buffer,
    count: Buffer,
) -> None:
    # A few tokens are written faster than other threads are woken.
    loop = T.serial if shape.rows * shape.width <= 4 else T.parallel
    with loop(0, shape.rows * shape.kv_heads) as task:
        row = T.Bind(task // shape.kv_heads)
        head = T.Bind(task % shape.kv_heads)
        with T.serial(0, T.min(count[row], shape.width)) as i:
            slot = T.Bind(length[row] + i)
            with when(slot < shape.slots):
                _write_slot(shape, isa, new, cache, (row, head, i), sequence[row], slot)


def _copy_to_scratch(
    shape: AttentionShape, isa: VectorIsa, new: tuple[Buffer, Buffer], scratch: tuple[Buffer, Buffer]
) -> None:
    for source, target, dim in zip(new, scratch, (shape.head_dim, shape.value_dim), strict=True):
        lanes = widest_vector(dim, isa.lanes)
        with T.serial(0, shape.rows) as row, T.serial(0, shape.kv_heads) as head, T.serial(0, shape.width) as i:
            with T.serial(0, dim // lanes) as chunk, vector(lanes) as d:
                T.buffer_store(target, source[row, head, i, chunk * lanes + d], [row, head, i, chunk * lanes + d])


@contextmanager
def _tasks(shape: AttentionShape, isa: VectorIsa) -> Iterator[tuple[Expr, Expr, Expr, int]]:
    """Parallel loop over (row, query head, tile of query tokens); yields their indices and the tile's height."""
    height = _tile_height(shape, isa)
    tiles = shape.width // height
    with T.parallel(0, shape.rows * shape.heads * tiles) as task:
        # Late tiles see more slots: take tiles in the outer loop, so that each thread gets early and late ones.
        head = T.Bind(task // (shape.rows * tiles))
        row = T.Bind(task // tiles % shape.rows)
        yield row, head, task % tiles * height, height


def _tile_height(shape: AttentionShape, isa: VectorIsa) -> int:
    """Query tokens handled together: a divisor of S whose accumulators fit the registers."""
    limit = max(1, isa.registers * 3 // 4 // min(4, max(1, shape.value_dim // isa.lanes)))
    return max(h for h in range(1, limit + 1) if shape.width % h == 0)


class _Attend:
    """Emits the attention of one tile; fresh (k, v) are new tokens that are not in the cache, or None."""

    def __init__(
        self,
        shape: AttentionShape,
        scoring: Scoring,
        isa: VectorIsa,
        q: Buffer,
        k_cache: Buffer,
        v_cache: Buffer,
        fresh: tuple[Buffer, Buffer] | None,
        sinks: Buffer | None,
        out: Buffer,
    ) -> None:
        self.shape, self.scoring, self.isa = shape, scoring, isa
        self.q, self.k_cache, self.v_cache = q, k_cache, v_cache
        self.fresh, self.sinks, self.out = fresh, sinks, out
        self.value_lanes = widest_vector(shape.value_dim, isa.lanes)

    def tile(self, row: Expr, seq: Expr, head: Expr, first: Expr, height: int, length: Expr, end: Expr) -> None:
        """Query tokens first..first+height of one head; ``length`` slots came before the call, ``end`` are visible."""
        group = T.Bind(head // self.shape.group)
        running_max, total = local(height), local(height)
        acc = local((height, self.shape.value_dim))
        scores = local((height, BLOCK))
        for i in range(height):
            start = self.sinks[head] if self.sinks is not None else T.float32(_MASKED)
            T.buffer_store(running_max, start, [i])
            T.buffer_store(total, T.float32(1.0 if self.sinks is not None else 0.0), [i])
            with T.serial(0, self.shape.value_dim // self.value_lanes) as chunk, vector(self.value_lanes) as d:
                T.buffer_store(acc, T.float32(0.0), [i, chunk * self.value_lanes + d])
        tile_end = T.Bind(T.min(end, length + first + height))
        window = self.scoring.window
        begin = T.max(length + first - window + 1, 0) // BLOCK if window else T.int32(0)
        begin = T.Bind(begin)
        with T.serial(0, T.max((tile_end + (BLOCK - 1)) // BLOCK - begin, 0)) as step:
            base = T.Bind((begin + step) * BLOCK)
            self._scores(scores, row, seq, head, group, first, height, length, base, tile_end)
            for i in range(height):
                limit = T.min(length + first + i, end - 1)
                self._softmax(scores, running_max, total, acc, i, base, limit)
            self._values(scores, acc, row, seq, group, height, length, base, tile_end)
        for i in range(height):
            inverse = T.Bind(T.float32(1.0) / total[i])
            with T.serial(0, self.shape.value_dim // self.value_lanes) as chunk, vector(self.value_lanes) as d:
                index = chunk * self.value_lanes + d
                T.buffer_store(self.out, acc[i, index] * inverse, [row, first + i, head, index])

    def _scores(
        self,
        scores: Buffer,
        row: Expr,
        seq: Expr,
        head: Expr,
        group: Expr,
        first: Expr,
        height: int,
        length: Expr,
        base: Expr,
        tile_end: Expr,
    ) -> None:
        """scores[i, :] = q[i] . k[base : base+BLOCK], panel by panel; panels nobody sees stay as they are."""
        lanes = self.isa.lanes
        # Few query rows need several panels at once to keep the multiply-add units busy.
        together = max(1, min(BLOCK // lanes, 8 // height))
        while (BLOCK // lanes) % together:
            together -= 1
        visible = T.min(tile_end - base, BLOCK)
        with T.serial(0, (visible + (lanes * together - 1)) // (lanes * together)) as strip:
            slot = T.Bind(base + strip * (lanes * together))
            if self.fresh is None:
                panel = slot // lanes
                # The last strip may reach past the cache's end; those lanes are masked, so any panel does.
                last = -(-self.shape.slots // lanes) - 1

                def load(p: int, d: Expr, lane: Expr) -> Expr:
                    return self.k_cache[seq, group, T.min(panel + p, last), d, lane]

                self._dot(scores, load, row, head, first, height, together, strip)
                return
            gathered = local((together, self.shape.head_dim, lanes))
            self._gather(gathered, row, seq, group, length, slot, together)
            self._dot(scores, lambda p, d, lane: gathered[p, d, lane], row, head, first, height, together, strip)

    def _dot(
        self,
        scores: Buffer,
        load: Any,
        row: Expr,
        head: Expr,
        first: Expr,
        height: int,
        together: int,
        strip: Expr,
    ) -> None:
        lanes = self.isa.lanes
        sums = [[local(lanes) for _ in range(together)] for _ in range(height)]
        for line in sums:
            for acc in line:
                fill(acc, 0, lanes, lanes, 0.0)
        with T.serial(0, self.shape.head_dim) as d:
            for i in range(height):
                for p in range(together):
                    with vector(lanes) as lane:
                        product = self.q[row, head, first + i, d] * load(p, d, lane)
                        T.buffer_store(sums[i][p], sums[i][p][lane] + product, [lane])
        for i in range(height):
            for p in range(together):
                with vector(lanes) as lane:
                    value = sums[i][p][lane] * T.float32(self.scoring.scale)
                    if self.scoring.softcap:
                        cap = T.float32(self.scoring.softcap)
                        value = vector_math.tanh(value / cap) * cap
                    T.buffer_store(scores, value, [i, (strip * together + p) * lanes + lane])

    def _gather(
        self, gathered: Buffer, row: Expr, seq: Expr, group: Expr, length: Expr, slot: Expr, together: int
    ) -> None:
        """Panels from ``slot`` on: whole live ones are copied, the rest is put together from live and new keys."""
        assert self.fresh is not None
        lanes, dim = self.isa.lanes, self.shape.head_dim
        for p in range(together):
            start = slot + p * lanes
            with T.If(start + lanes <= length):
                with T.Then(), T.serial(0, dim) as d, vector(lanes) as lane:
                    T.buffer_store(gathered, self.k_cache[seq, group, start // lanes, d, lane], [p, d, lane])
                with T.Else(), T.serial(0, lanes) as lane:
                    at = T.Bind(start + lane)
                    with T.If(at < length):
                        with T.Then(), T.serial(0, dim) as d:
                            T.buffer_store(gathered, self.k_cache[seq, group, at // lanes, d, at % lanes], [p, d, lane])
                        with T.Else(), T.serial(0, dim) as d:
                            fresh = T.min(at - length, self.shape.width - 1)
                            T.buffer_store(gathered, self.fresh[0][row, group, fresh, d], [p, d, lane])

    def _softmax(
        self, scores: Buffer, running_max: Buffer, total: Buffer, acc: Buffer, i: int, base: Expr, limit: Expr
    ) -> None:
        """Turns one row of scores into weights relative to the running maximum, and rescales what was summed before."""
        lanes = self.isa.lanes
        window = self.scoring.window
        peak, partial = local(lanes), local(lanes)
        fill(peak, 0, lanes, lanes, _MASKED)
        with T.serial(0, BLOCK // lanes) as chunk, vector(lanes) as lane:
            slot = base + chunk * lanes + lane
            visible = slot <= limit
            if window:
                visible = T.And(visible, slot > limit - window)
            value = T.Select(visible, scores[i, chunk * lanes + lane], T.float32(_MASKED))
            T.buffer_store(scores, value, [i, chunk * lanes + lane])
            T.buffer_store(peak, T.max(peak[lane], value), [lane])
        new_max = local(1)
        T.buffer_store(new_max, running_max[i], [0])
        with T.serial(0, lanes) as lane:
            T.buffer_store(new_max, T.max(new_max[0], peak[lane]), [0])
        decay = T.Bind(vector_math.exp(running_max[i] - new_max[0]))
        T.buffer_store(running_max, new_max[0], [i])
        fill(partial, 0, lanes, lanes, 0.0)
        with T.serial(0, BLOCK // lanes) as chunk, vector(lanes) as lane:
            weight = vector_math.exp(scores[i, chunk * lanes + lane] - running_max[i])
            T.buffer_store(scores, weight, [i, chunk * lanes + lane])
            T.buffer_store(partial, partial[lane] + scores[i, chunk * lanes + lane], [lane])
        T.buffer_store(total, total[i] * decay, [i])
        with T.serial(0, lanes) as lane:
            T.buffer_store(total, total[i] + partial[lane], [i])
        with T.serial(0, self.shape.value_dim // self.value_lanes) as chunk, vector(self.value_lanes) as d:
            index = chunk * self.value_lanes + d
            T.buffer_store(acc, acc[i, index] * decay, [i, index])

    def _values(
        self,
        scores: Buffer,
        acc: Buffer,
        row: Expr,
        seq: Expr,
        group: Expr,
        height: int,
        length: Expr,
        base: Expr,
        tile_end: Expr,
    ) -> None:
        """acc[i] += sum over the block's visible slots, in order, of weight * value."""
        lanes = self.value_lanes
        stop = T.Bind(T.min(tile_end, base + BLOCK))
        # Live slots first, then new tokens: in slot order either way.
        live_stop = stop if self.fresh is None else T.Bind(T.max(T.min(stop, length), base))
        vectors = self.shape.value_dim // lanes
        chunk_vectors = next(n for n in (4, 3, 2, 1) if vectors % n == 0)
        with T.serial(0, vectors // chunk_vectors) as chunk:
            origin = chunk * (chunk_vectors * lanes)
            sums = [[local(lanes) for _ in range(chunk_vectors)] for _ in range(height)]
            for i in range(height):
                for c in range(chunk_vectors):
                    with vector(lanes) as d:
                        T.buffer_store(sums[i][c], acc[i, origin + c * lanes + d], [d])

            def add(t: Expr, load: Any) -> None:
                for i in range(height):
                    for c in range(chunk_vectors):
                        with vector(lanes) as d:
                            product = scores[i, t - base] * load(origin + c * lanes + d)
                            T.buffer_store(sums[i][c], sums[i][c][d] + product, [d])

            with T.serial(0, live_stop - base) as t:
                add(base + t, lambda d: self.v_cache[seq, group, base + t, d])
            if self.fresh is not None:
                values = self.fresh[1]
                with T.serial(0, T.max(stop - live_stop, 0)) as t:
                    add(live_stop + t, lambda d: values[row, group, live_stop + t - length, d])
            for i in range(height):
                for c in range(chunk_vectors):
                    with vector(lanes) as d:
                        T.buffer_store(acc, sums[i][c][d], [i, origin + c * lanes + d])
