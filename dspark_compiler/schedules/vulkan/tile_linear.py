"""Linears of many rows on any Vulkan device: by cooperative matrices where it has them, else by simt/tile_linear.py.

The choice is made by the host at each launch, so that one artifact has both.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.simt.tile_linear import emit_tile_linear, tile_args
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, made_once
from dspark_compiler.schedules.vulkan.matrices import HAS_MATRICES, SIDE, Matrices
from dspark_compiler.schedules.vulkan.matrix_linear import STEP, MatrixTile, emit_matrix_linear
from dspark_compiler.schedules.vulkan.rounded_rows import emit_rounded_rows

_BUSY = 96  # work groups that keep a large device busy
# Where work groups are few, none beside a multiprocessor's own hides its waiting: more steps are under way.
_TILES = (MatrixTile(128, 128, 2, 4), MatrixTile(64, 64, 2, 2, ahead=4), MatrixTile(32, 32, 2, 1, ahead=4))


@made_once
def tile_linear(name: str, work: LinearWorkload, options: Options = PLAIN) -> tvm.tirx.PrimFunc:
    """Kernel with the arguments of simt's; behind y what it needs itself.

    Those are x as float16 [rows, depth up to a whole step], and a factor of each row of it, float32 [rows].
    """
    args, tile = tile_linear_args(work, options), best_tile(work)

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with T.If(T.call_packed(HAS_MATRICES, T.int32(SIDE), T.int32(tile.shared_bytes)) != 0):
            with T.Then():
                emit_rounded_rows(of["x"], of["rounded"], of["row_scale"])
                emit_matrix_linear(work, tile, options, of, Matrices())
            with T.Else():
                emit_tile_linear(work, options, of)

    return tag(kernel(name, args, body), work)


def tile_linear_args(work: LinearWorkload, options: Options) -> list[Arg]:
    """What it takes."""
    padded = -(-work.depth // STEP) * STEP
    own = Arg("rounded", (work.rows, padded), "float16"), Arg("row_scale", (work.rows,))
    return [*tile_args(work, options), *own]


def best_tile(work: LinearWorkload) -> MatrixTile:
    """The largest of which there are enough to keep a device busy, else the smallest."""
    for tile in _TILES:
        if -(-work.rows // tile.rows) * -(-work.features // tile.features) >= _BUSY:
            return tile
    return _TILES[-1]
