"""Mean and variance of each slot's logits over some queries."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.dot_tile import DotTile, dot_strip, gathered_queries, tiles_of
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape, padded_row, store_row
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, fill, kernel, local, vector


def logit_moments(
    name: str, shape: CacheShape, scale: float, isa: VectorIsa, *, heads: int, queries: int
) -> tvm.tirx.PrimFunc:
    """Mean and population variance of scale * q.k over the first min(queries, length) queries, for each slot.

    Arguments: queries [1,H,R,D], k_cache, [k_scale], sequence, length, out [2,H,C].
    """
    tile = DotTile.of(queries, isa)
    tiles = -(-queries // tile.height)

    def body(q: Buffer, k_cache: Buffer, *rest: Buffer) -> None:
        k_scale, (sequence, length, out) = rest[0] if shape.storage.scaled else None, rest[-3:]
        seq, count = T.Bind(sequence[0]), T.Bind(T.max(T.min(length[0], queries), 1))
        width = tile.panels * isa.lanes
        with T.parallel(0, heads) as head:
            group = T.Bind(head // (heads // shape.kv_heads))
            packed = gathered_queries(tile, tiles, shape.head_dim, count, lambda t, d: q[0, head, t, d])
            size = tile.strips(shape, isa) * width
            factors = None
            if k_scale is not None:
                factors = padded_row(k_scale, (seq, group), T.int32(shape.slots), size, isa, 0.0)
            logits, moments = local((tiles * tile.height, width)), (local(size), local(size))
            with T.serial(0, tile.strips(shape, isa)) as strip:
                base = T.Bind(strip * width)
                with T.serial(0, tiles_of(tile, count)) as number:
                    put = _logit_store(logits, factors, scale, number * tile.height, base)
                    dot_strip(tile, shape, isa, packed, number, (k_cache, seq, group, strip), put)
                for panel in range(tile.panels):
                    _panel_moments(isa, logits, moments, count, (panel * isa.lanes, base))
            for moment, row in enumerate(moments):
                store_row(row, out, (moment, head), shape.slots, isa)

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length")]
    given = Arg("queries", (1, heads, queries, shape.head_dim))
    return kernel(name, [given, *shape.keys(isa), *control, Arg("out", (2, heads, shape.slots))], body)


def _logit_store(
    logits: Buffer, factors: Buffer | None, scale: float, first: Expr, base: Expr
) -> Callable[[int, Expr, Expr, Buffer], None]:
    """What puts a product into row ``first`` + i of ``logits``, whose columns are slots from ``base`` on."""

    def put(i: int, slot: Expr, lane: Expr, sums: Buffer) -> None:
        value = sums[lane] * T.float32(scale)
        T.buffer_store(logits, value if factors is None else value * factors[slot], [first + i, slot - base])

    return put


def _panel_moments(
    isa: VectorIsa, logits: Buffer, moments: tuple[Buffer, Buffer], count: Expr, at: tuple[int, Expr]
) -> None:
    """Both moments of the panel of slots at column at[0] of ``logits``, which begin at slot at[1]."""
    column, base = at
    lanes, inverse = isa.lanes, T.float32(1.0) / T.cast(count, "float32")
    mean, square = local(lanes), local(lanes)
    fill(mean, 0, lanes, lanes, 0.0)
    fill(square, 0, lanes, lanes, 0.0)
    with T.serial(0, count) as t, vector(lanes) as lane:
        T.buffer_store(mean, mean[lane] + logits[t, column + lane], [lane])
    with vector(lanes) as lane:
        T.buffer_store(mean, mean[lane] * inverse, [lane])
    with T.serial(0, count) as t, vector(lanes) as lane:
        off = logits[t, column + lane] - mean[lane]
        T.buffer_store(square, square[lane] + off * off, [lane])
    with vector(lanes) as lane:
        T.buffer_store(moments[0], mean[lane], [base + column + lane])
    with vector(lanes) as lane:
        T.buffer_store(moments[1], square[lane] * inverse, [base + column + lane])
