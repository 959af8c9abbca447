"""What can be chosen about a streaming linear kernel, the choice without a record, and what is worth measuring."""

from dataclasses import dataclass, replace

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.quantized_fragments import BITS, tile_depth
from dspark_compiler.schedules.cuda.stream_inputs import GROUP
from dspark_compiler.schedules.linear_schedule import LinearWorkload

FEW_ROWS = 32  # up to so many rows a linear streams its weight

_MANY = 4 * 132  # stripes that fill a chip's multiprocessors with blocks of one
_SHALLOW = 256  # columns of W of which a stripe takes less time than a block does to begin and end
_ONE_WAVE = 2 * 132  # and those whose blocks all start at once


@dataclass(frozen=True)
class StreamSchedule:
    """How a streaming linear kernel cuts W; rows of x do not change the warps, or a row's sums would depend on them."""

    stripes: int  # of 16 features that a block computes
    warps: int  # of a block, which share the stripes' depth
    ahead: int  # tiles of each stripe that a warp has asked for before it uses the first


def default_stream_schedule(work: LinearWorkload) -> StreamSchedule:
    """The schedule without a record: as many warps share a stripe whatever the rows.

    Many rows of x are read from the L2 by every block: a block that takes two stripes reads them half as often. Blocks
    of a gated product have two anyway; those of eight bits then have too few registers to look far ahead.
    """
    few, stripes = _few_rows_schedule(work), -(-work.features // TILE_ROWS)
    if work.rows <= (GROUP if work.weight_dtype in BITS else 2 * GROUP):
        return few
    if work.gated:
        return replace(few, ahead=2) if work.weight_dtype == "int8" else few
    if stripes >= _MANY or few.warps not in (8, 16) or few.warps > _tiles(work):
        return few
    # Four bits have deep stripes that 16 warps share; two of those take more registers than there are.
    if work.weight_dtype == "int4" and few.warps == 16 and work.rows > 2 * GROUP:
        return few
    return StreamSchedule(2, few.warps, 4 if few.warps == 8 else 2)


def _few_rows_schedule(work: LinearWorkload) -> StreamSchedule:
    """For rows that take one product of a tile.

    Where there are many stripes, several blocks of few warps share a multiprocessor, one of them starting while others
    stream. Few stripes have to be taken by as many warps as can be kept at it, all of a stripe under way at once; or,
    where every block finds room from the start, by half as many that look twice as far ahead.
    """
    tiles, quantized = _tiles(work), work.weight_dtype in BITS
    stripes = -(-work.features // TILE_ROWS) // (1 + work.gated)
    if stripes >= _MANY and work.depth <= _SHALLOW:
        return StreamSchedule(4, 4, 2)
    if stripes >= _MANY:
        if quantized:
            return StreamSchedule(1, 8 if tiles >= 40 else 4, 4)
        if tiles >= 128:
            return StreamSchedule(1, 8, 4)
        return StreamSchedule(2, 8, 4) if work.gated and tiles >= 64 else StreamSchedule(1, 4, 8)
    if quantized:
        return StreamSchedule(1, 16 if tiles >= 64 else 8, 4)
    if tiles < 32 or tiles >= (128 if stripes <= _ONE_WAVE else 256):
        return StreamSchedule(1, 8, 4 if tiles < 32 else 8)
    return StreamSchedule(1, 16, 4 if tiles >= 128 else 2)


def candidate_schedules(work: LinearWorkload) -> list[StreamSchedule]:
    """What is worth measuring, the default first: stripes, warps, and as much ahead as registers allow."""
    default = default_stream_schedule(work)
    shapes = [(1, 8, 4), (1, 8, 8), (1, 8, 2), (1, 12, 4), (1, 16, 4), (1, 16, 2), (1, 4, 8), (1, 4, 4)]
    # Several stripes at once read the rows of x less often.
    shapes += [(2, 16, 2), (2, 8, 4), (2, 4, 4), (4, 8, 2), (4, 4, 2)]
    every = [StreamSchedule(*shape) for shape in shapes if shape[1] <= _tiles(work)]
    return [default, *(schedule for schedule in every if schedule != default)]


def _tiles(work: LinearWorkload) -> int:
    return -(-work.depth // (tile_depth(work.weight_dtype) if work.weight_dtype in BITS else TILE_DEPTH))
