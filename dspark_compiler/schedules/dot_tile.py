"""Products of a head's queries with panels of keys: a register tile of queries by panels."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Buffer, Expr, fill, local, vector

_MOST_PANELS = 8  # enough sums for the multiply-add units when there are few queries


@dataclass(frozen=True)
class DotTile:
    """How many queries and panels are multiplied at a time."""

    height: int
    panels: int

    @classmethod
    def of(cls, queries: int, isa: VectorIsa) -> "DotTile":
        """The tile for up to ``queries`` queries: its sums take 3/4 of the registers, its last one has few repeats."""
        sums = isa.registers * 3 // 4
        tiles = -(-queries // (sums // 4))
        height = -(-queries // tiles)
        return cls(height, min(_MOST_PANELS, sums // height))

    def strips(self, shape: CacheShape, isa: VectorIsa) -> int:
        """Strips of ``panels`` panels that hold the keys of a head; the last one may reach past them."""
        return -(-shape.panels(isa) // self.panels)


def gathered_queries(tile: DotTile, tiles: int, dim: int, count: Expr, query: Callable[[Expr, Expr], Expr]) -> Buffer:
    """Queries of a head as tiles [tiles, dim, height]; query(t, d) is an element of number t.

    Only tiles with one of the first ``count`` are filled, in the last of them the last query again and again.
    """
    packed = local((tiles, dim, tile.height))
    with T.serial(0, tiles_of(tile, count)) as number, T.serial(0, tile.height) as i:
        t = T.Bind(T.min(number * tile.height + i, count - 1))
        with T.serial(0, dim) as d:
            T.buffer_store(packed, query(t, d), [number, d, i])
    return packed


def tiles_of(tile: DotTile, count: Expr) -> Expr:
    """Tiles that ``count`` queries take."""
    return T.Bind((count + (tile.height - 1)) // tile.height)


def dot_strip(
    tile: DotTile,
    shape: CacheShape,
    isa: VectorIsa,
    queries: Buffer,
    number: Expr,
    keys: tuple[Buffer, Expr, Expr, Expr],
    put: Callable[[int, Expr, Expr, Buffer], None],
) -> None:
    """Queries of tile ``number`` times the keys of a strip.

    Args:
        tile: the sizes.
        shape: of the cache.
        isa: its vectors.
        queries: as gathered_queries returns them.
        number: of the tile.
        keys: (k_cache, sequence, key/value head, strip); what lies past the last panel is the last panel again.
        put: put(i, slot, lane, sums) emits what becomes of sums[lane], query i's product with slot.
    """
    k_cache, seq, group, strip = keys
    lanes, last = isa.lanes, shape.panels(isa) - 1
    panels = [T.Bind(T.min(strip * tile.panels + p, last)) for p in range(tile.panels)]
    sums = [[local(lanes) for _ in panels] for _ in range(tile.height)]
    for acc in (acc for line in sums for acc in line):
        fill(acc, 0, lanes, lanes, 0.0)
    with T.serial(0, shape.head_dim) as d:
        for i, line in enumerate(sums):
            for panel, acc in zip(panels, line, strict=True):
                with vector(lanes) as lane:
                    product = queries[number, d, i] * shape.storage.load(k_cache[seq, group, panel, d, lane])
                    T.buffer_store(acc, acc[lane] + product, [lane])
    for i, line in enumerate(sums):
        for p, acc in enumerate(line):
            with vector(lanes) as lane:
                put(i, (strip * tile.panels + p) * lanes + lane, lane, acc)
