"""What can be chosen about a matmul kernel of many rows, the choice without a record, and what is worth measuring."""

from dataclasses import dataclass

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS
from dspark_compiler.schedules.linear_schedule import LinearWorkload

# H100 and H200 (SXM); only the choice of a default rests on these.
MULTIPROCESSORS = 132
_L2_BYTES_PER_CLOCK = 8192  # over all multiprocessors
_L1_BYTES_PER_CLOCK = 64  # what one multiprocessor can take
_START_CLOCKS = 3000  # filling the stages and storing the tile, while nothing is multiplied
_BLOCK_BYTES = 227 << 10  # of shared memory


@dataclass(frozen=True)
class TileSchedule:
    """How a product is cut into tiles; each output sums over k in order, so none of it changes a result."""

    rows: int  # of x a block covers: a multiple of 64 with wgmma, of 32 with mma
    features: int  # rows of W it covers, a multiple of 16 (gated: 32), half of them of the gate
    stages: int  # slices of 64 (wgmma) or 32 (mma) columns in shared memory


def has_wgmma(arch: str) -> bool:
    """Whether the warpgroup product is there: Hopper's alone, and only in code for it alone."""
    return arch == "sm_90a"


def default_tile_schedule(work: LinearWorkload, arch: str) -> TileSchedule:
    """The schedule without a record: the tiles that a model of one multiprocessor finds soonest done."""
    if not has_wgmma(arch):
        features = min(128, _padded(work))
        return TileSchedule(32 * min(4, -(-work.rows // 32)), features, 4)
    return min(_tiles(work), key=lambda tile: _clocks(work, tile))


def candidate_schedules(work: LinearWorkload, arch: str, count: int = 8) -> list[TileSchedule]:
    """What is worth measuring, the default first."""
    default = default_tile_schedule(work, arch)
    if not has_wgmma(arch):
        return [default]
    ranked = sorted(_tiles(work), key=lambda tile: _clocks(work, tile))
    return ranked[:count]


def _padded(work: LinearWorkload) -> int:
    unit = TILE_ROWS * (2 if work.gated else 1)
    return -(-work.features // unit) * unit


def _tiles(work: LinearWorkload) -> list[TileSchedule]:
    widths = [n for n in (32, 64, 96, 128, 160, 192, 224, 256) if n <= _padded(work)] or [_padded(work)]
    heights = [rows for rows in (64, 128) if rows == 64 or work.rows > 64]
    return [TileSchedule(m, n, _stages(m, n)) for m in heights for n in widths]


def _stages(rows: int, features: int) -> int:
    """As many as fit beside barriers and what tile_slabs.py needs, up to eight."""
    return min(8, (_BLOCK_BYTES - 1024 - rows * 256) // ((rows + features) * 128))


def _clocks(work: LinearWorkload, tile: TileSchedule) -> float:
    """About how long the product takes: the tensor cores' or the memory's time for a tile, times waves of tiles."""
    tiles = -(-work.rows // tile.rows) * -(-work.features // tile.features)
    busy = min(tiles, MULTIPROCESSORS)
    multiply = tile.rows * tile.features * work.depth / 2048
    load = (tile.rows + tile.features) * 2 * work.depth / min(_L1_BYTES_PER_CLOCK, _L2_BYTES_PER_CLOCK / busy)
    return -(-tiles // MULTIPROCESSORS) * (max(multiply, load) + _START_CLOCKS)
