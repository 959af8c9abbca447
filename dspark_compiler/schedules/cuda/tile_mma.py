"""x @ W.T for many rows on any tensor cores since sm_80: mma.m16n8k16 fed by stages of cp.async.

A block covers a tile of y, each of its warps 32 rows of it. Shared memory holds slices of 32 columns of x and W in the
pieces of fragments.py: octet t of row g of eight rows. A lane's product needs (t, g) for g = lane / 4, t = lane % 4; a
piece lies at 8t + (g ^ 2t) of its group's 32, so that eight lanes meet in no bank.
"""

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, copy16, wait_copies
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.mma import load_shared, multiply_add
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.tir import Buffer, Expr, when

WARP_ROWS = 32
_GROUP_BYTES = 512  # eight rows by 32 columns


def emit_mma_tiles(x: Buffer, w: Buffer, rest: Sequence[Buffer], output: TileOutput, cut: TileSchedule) -> None:
    """Emits the launch for x [M, K], packed w and the output's buffers."""
    work, dtype = output.work, str(x.dtype)
    columns = cut.features // 2 if output.activation else cut.features
    threads = cut.rows // WARP_ROWS * WARP
    slices = -(-work.depth // TILE_DEPTH)
    x_bytes, stage_bytes = cut.rows * 64, (cut.rows + cut.features) * 64
    grid = (-(-work.rows // cut.rows), -(-output.features // columns))

    with launch(grid, threads) as (tile_row, tile_column, thread):
        memory = shared(cut.stages * stage_bytes, "uint8", dynamic=True)

        def load(index: Expr, slot: Expr) -> None:
            octet, first = thread % 4, thread // 4
            for start in range(0, cut.rows, threads // 4):
                row, at = first + start, index * TILE_DEPTH + octet * 8
                place = slot * stage_bytes + row // 8 * _GROUP_BYTES + _piece(octet, row % 8)
                valid = T.And(tile_row * cut.rows + row < work.rows, at < work.depth)
                copy16(address(memory, place), address(x, tile_row * cut.rows + row, at), valid)
            for start in range(0, cut.features * 4, threads):
                piece = thread + start
                with when(piece < cut.features * 4):
                    tile, inside = piece // 64, piece % 64
                    source, valid = weight_tile(output, cut, tile_column, tile)
                    place = slot * stage_bytes + x_bytes + piece // 32 * _GROUP_BYTES
                    row = inside // 4 % 8
                    place += _piece(T.bitwise_xor(inside % 4, row // 2), row)
                    valid = T.And(valid, index < slices)
                    copy16(address(memory, place), address(w, source, index, inside * 8), valid)
            commit_copies()

        warp, g, t = thread // WARP, thread % WARP // 4, thread % 4
        sums = [registers(cut.features // 2) for _ in range(2)]
        for column in sums:
            for i in range(cut.features // 2):
                T.buffer_store(column, T.float32(0), [i])
        pieces, a, b = registers(16, "uint32"), registers(16, "uint32"), registers(4, "uint32")
        for ahead in range(cut.stages - 1):
            load(T.int32(ahead), T.int32(ahead))
        with T.serial(0, slices) as index:
            wait_copies(cut.stages - 2)
            barrier()
            load(index + cut.stages - 1, (index + cut.stages - 1) % cut.stages)
            base = index % cut.stages * stage_bytes + _piece(t, g)
            for group in range(4):
                place = base + (warp * 4 + group) * _GROUP_BYTES
                load_shared(pieces, 4 * group, address(memory, place))
            for block in range(2):
                for product in range(2):
                    for i in range(4):
                        piece = pieces[4 * (2 * block + i % 2) + 2 * product + i // 2]
                        T.buffer_store(a, piece, [4 * (2 * block + product) + i])
            for group in range(cut.features // 8):
                load_shared(b, 0, address(memory, base + x_bytes + group * _GROUP_BYTES))
                for block in range(2):
                    for product in range(2):
                        multiply_add(sums[block], a, b, dtype, at=(4 * group, 4 * (2 * block + product), 2 * product))
        for block in range(2):
            row = tile_row * cut.rows + warp * WARP_ROWS + block * 16 + g
            output.store(sums[block], rest, row, tile_column * columns + 2 * t, columns)


def weight_tile(output: TileOutput, cut: TileSchedule, tile_column: Expr, tile: Expr) -> tuple[Expr, Expr]:
    """Where tile ``tile`` of the features a block covers lies in packed W, and whether there is one."""
    if not output.activation:
        source = tile_column * (cut.features // TILE_ROWS) + tile
        return source, source < -(-output.features // TILE_ROWS)
    half, tiles = cut.features // 2 // TILE_ROWS, output.features // TILE_ROWS
    source = tile_column * half + tile % half
    return source + tile // half * tiles, source < tiles


def _piece(octet: Expr, row: Expr) -> Expr:
    return (octet * 8 + T.bitwise_xor(row, 2 * octet)) * 16
