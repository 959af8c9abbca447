"""What attention the last queries paid each slot: the part of attention that a policy scores by.

Softmax needs a query's maximum over all slots before any weight, so a tile of queries keeps its scores of all slots;
the weights are then added up where the scores lie.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.dot_tile import DotTile, dot_strip, gathered_queries, tiles_of
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_rows import used_slots
from dspark_compiler.schedules.slot_shape import CacheShape, padded_row, store_row
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, fill, kernel, local, made_once, vector, when

_MASKED, _LOWEST = -1e30, -1e29  # a maximum over masked slots alone stays above them: their weights are 0
_NEVER = 2**31 - 1


@made_once
def attention_mass(
    name: str,
    shape: CacheShape,
    scoring: Scoring,
    isa: VectorIsa,
    *,
    heads: int,
    places: int,
    last: int,
    bounded: bool,
) -> tvm.tirx.PrimFunc:
    """Attention weights of the last min(last, places, length, pending) queries, summed by slot.

    Arguments: ring [B,H,R,D], k_cache, [k_scale], slot_position int32 [B,G,C], sequence, length, free, [pending if
    ``bounded``], [sinks [H]], out [1,H,C].
    """
    tile = DotTile.of(min(last, places), isa)

    def body(ring: Buffer, k_cache: Buffer, *rest: Buffer) -> None:
        k_scale, rest = (rest[0], rest[1:]) if shape.storage.scaled else (None, rest)
        slot_position, sequence, length, free, *optional, out = rest
        pending = optional.pop(0)[0] if bounded else T.int32(_NEVER)
        sinks = optional[0] if scoring.sinks else None
        seq, end = T.Bind(sequence[0]), T.Bind(length[0])
        used = used_slots(end, shape.slots, free[0])
        count = T.Bind(T.min(T.min(end, pending), min(last, places)))
        with T.parallel(0, heads) as head:
            row = _Row(shape, scoring, isa, tile, (k_cache, k_scale, slot_position), (seq, head, heads), used)
            first = T.Bind(end - count)
            queries = gathered_queries(
                tile,
                -(-min(last, places) // tile.height),
                shape.head_dim,
                count,
                lambda t, d: ring[seq, head, (first + t) % places, d],
            )
            with T.serial(0, tiles_of(tile, count)) as number:
                row.add(queries, number, first, count, None if sinks is None else sinks[head])
            row.store(out)

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length", "free", *(["pending"] if bounded else []))]
    args = [
        Arg("ring", (shape.batch, heads, places, shape.head_dim)),
        *shape.keys(isa),
        Arg("slot_position", shape.per_slot, "int32"),
        *control,
        *([Arg("sinks", (heads,))] if scoring.sinks else []),
        Arg("out", (1, heads, shape.slots)),
    ]
    return kernel(name, args, body)


class _Row:
    """Emits the sum of weights over the slots of one query head."""

    def __init__(
        self,
        shape: CacheShape,
        scoring: Scoring,
        isa: VectorIsa,
        tile: DotTile,
        cache: tuple[Buffer, Buffer | None, Buffer],
        at: tuple[Expr, Expr, int],
        used: Expr,
    ) -> None:
        self._shape, self._scoring, self._isa, self._tile = shape, scoring, isa, tile
        self._keys, k_scale, slot_position = cache
        self._seq, self._head, heads = at
        self._group = T.Bind(self._head // (heads // shape.kv_heads))
        size = tile.strips(shape, isa) * tile.panels * isa.lanes
        part = (self._seq, self._group)
        # No query sees the slots behind the live ones: their tokens come after all others.
        self._position = padded_row(slot_position, part, used, size, isa, _NEVER)
        self._k_scale = None if k_scale is None else padded_row(k_scale, part, used, size, isa, 0.0)
        self._strips = T.Bind((used + (tile.panels * isa.lanes - 1)) // (tile.panels * isa.lanes))
        self._mass, self._scores = local(size), local((tile.height, size))
        self._inverse = local(tile.height)
        with T.serial(0, size // isa.lanes) as chunk:
            fill(self._mass, chunk * isa.lanes, isa.lanes, isa.lanes, 0.0)

    def add(self, queries: Buffer, number: Expr, first: Expr, count: Expr, sink: Expr | None) -> None:
        """Adds the weights of tile ``number`` of ``count`` queries, those of the positions from ``first`` on."""
        height, scores = self._tile.height, self._scores

        def put(i: int, slot: Expr, lane: Expr, sums: Buffer) -> None:
            T.buffer_store(scores, sums[lane], [i, slot])

        with T.serial(0, self._strips) as strip:
            keys = (self._keys, self._seq, self._group, strip)
            dot_strip(self._tile, self._shape, self._isa, queries, number, keys, put)
        with T.serial(0, height) as i:
            t = T.Bind(number * height + i)
            # The last tile repeats its last query.
            T.buffer_store(self._inverse, T.float32(0.0), [i])
            with when(t < count):
                self._weigh(i, self._score(i, first + t, sink), sink)
        with T.serial(0, self._strips * self._tile.panels) as chunk, vector(self._isa.lanes) as lane:
            slot = chunk * self._isa.lanes + lane
            total = self._mass[slot]
            for i in range(height):
                total = total + scores[i, slot] * self._inverse[i]
            T.buffer_store(self._mass, total, [slot])

    def store(self, out: Buffer) -> None:
        """Writes the sums to out[0, head]."""
        store_row(self._mass, out, (0, self._head), self._shape.slots, self._isa)

    def _score(self, i: Expr, position: Expr, sink: Expr | None) -> Expr:
        """Turns the products of query i into scores, and returns the highest, or what stands for none."""
        lanes, scores, scoring = self._isa.lanes, self._scores, self._scoring
        peaks, highest = local(lanes), local(1)
        fill(peaks, 0, lanes, lanes, _LOWEST)
        with T.serial(0, self._strips * self._tile.panels) as chunk, vector(lanes) as lane:
            slot = chunk * lanes + lane
            value = scores[i, slot] * T.float32(scoring.scale)
            if self._k_scale is not None:
                value = value * self._k_scale[slot]
            if scoring.softcap:
                cap = T.float32(scoring.softcap)
                value = vector_math.tanh(value / cap) * cap
            visible = self._position[slot] <= position
            if scoring.window:
                visible = T.And(visible, self._position[slot] > position - scoring.window)
            T.buffer_store(scores, T.Select(visible, value, T.float32(_MASKED)), [i, slot])
            T.buffer_store(peaks, T.max(peaks[lane], scores[i, slot]), [lane])
        T.buffer_store(highest, T.float32(_LOWEST) if sink is None else sink, [0])
        with T.serial(0, lanes) as lane:
            T.buffer_store(highest, T.max(highest[0], peaks[lane]), [0])
        return T.Bind(highest[0])

    def _weigh(self, i: Expr, highest: Expr, sink: Expr | None) -> None:
        """Turns the scores of query i into weights over ``highest``'s, and keeps one over the weights' sum."""
        lanes, scores = self._isa.lanes, self._scores
        partial, total = local(lanes), local(1)
        fill(partial, 0, lanes, lanes, 0.0)
        with T.serial(0, self._strips * self._tile.panels) as chunk, vector(lanes) as lane:
            slot = chunk * lanes + lane
            T.buffer_store(scores, vector_math.exp(scores[i, slot] - highest), [i, slot])
            T.buffer_store(partial, partial[lane] + scores[i, slot], [lane])
        T.buffer_store(total, T.float32(0.0) if sink is None else vector_math.exp(sink - highest), [0])
        with T.serial(0, lanes) as lane:
            T.buffer_store(total, total[0] + partial[lane], [0])
        # A query that sees no slot pays nothing.
        inverse = T.Select(total[0] > T.float32(0.0), T.float32(1.0) / total[0], T.float32(0.0))
        T.buffer_store(self._inverse, inverse, [i])
