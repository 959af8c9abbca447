"""x @ W.T for many rows on any tensor cores since sm_80: mma.m16n8k16 fed by stages of cp.async.

A block covers a tile of y, each of its warps 32 rows of it. Shared memory holds slices of 32 columns of x and W in the
pieces of fragments.py: octet t of row g of eight rows. A lane's product needs (t, g) for g = lane / 4, t = lane % 4; a
piece lies at 8t + (g ^ 2t) of its group's 32, so that eight lanes meet in no bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, copy16, wait_copies
from dspark_compiler.schedules.cuda.fragments import TILE, TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.mma import load_shared, multiply_add
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.tir import Buffer, Expr, when

WARP_ROWS = 32
_ROW_BYTES = 2 * TILE_DEPTH
_GROUP_BYTES = 8 * _ROW_BYTES


@dataclass(frozen=True)
class _Block:
    """What a thread of a block knows: where its tile of y begins, in which slices of x and W lie behind one another."""

    output: TileOutput
    cut: TileSchedule
    memory: Buffer
    tile_row: Expr
    tile_column: Expr
    thread: Expr

    @property
    def threads(self) -> int:
        return self.cut.rows // WARP_ROWS * WARP

    def group(self, slot: Expr, number: Expr) -> Expr:
        """Where eight rows' slice begins: x's first, then W's."""
        return slot * ((self.cut.rows + self.cut.features) * _ROW_BYTES) + number * _GROUP_BYTES

    def load(self, x: Buffer, w: Buffer, index: Expr, slot: Expr) -> None:
        """Starts loading slice ``index``; beyond the last, or where x and W end, zeros."""
        cut, work = self.cut, self.output.work
        octet, first = self.thread % 4, self.thread // 4
        for start in range(0, cut.rows, self.threads // 4):
            row, at = self.tile_row * cut.rows + first + start, index * TILE_DEPTH + octet * 8
            place = self.group(slot, (first + start) // 8) + _piece(octet, first % 8)
            copy16(address(self.memory, place), address(x, row, at), T.And(row < work.rows, at < work.depth))
        per_tile, slices = TILE // 8, -(-work.depth // TILE_DEPTH)
        for start in range(0, cut.features * 4, self.threads):
            piece = self.thread + start
            with when(piece < cut.features * 4):
                source, valid = weight_tile(self.output, cut, self.tile_column, piece // per_tile)
                row = piece // 4 % 8
                place = self.group(slot, cut.rows // 8 + piece // 32)
                place += _piece(T.bitwise_xor(piece % 4, row // 2), row)
                pointer = address(w, source, index, piece % per_tile * 8)
                copy16(address(self.memory, place), pointer, T.And(valid, index < slices))
        commit_copies()

    def multiply(self, sums: Sequence[Buffer], slot: Expr, dtype: str) -> None:
        """Adds x @ w.T of a slice to ``sums``: two products of 16 rows by 8 features each over half of its columns."""
        pieces, a, b = registers(16, "uint32"), registers(16, "uint32"), registers(4, "uint32")
        warp, mine = self.thread // WARP, _piece(self.thread % 4, self.thread % WARP // 4)
        for group in range(4):
            load_shared(pieces, 4 * group, address(self.memory, self.group(slot, warp * 4 + group) + mine))
        for block, product, i in np.ndindex(2, 2, 4):
            piece = pieces[4 * (2 * block + i % 2) + 2 * product + i // 2]
            T.buffer_store(a, piece, [4 * (2 * block + product) + i])
        for group in range(self.cut.features // 8):
            load_shared(b, 0, address(self.memory, self.group(slot, self.cut.rows // 8 + group) + mine))
            for block, product in np.ndindex(2, 2):
                multiply_add(sums[block], a, b, dtype, at=(4 * group, 4 * (2 * block + product), 2 * product))


def emit_mma_tiles(x: Buffer, w: Buffer, rest: Sequence[Buffer], output: TileOutput, cut: TileSchedule) -> None:
    """Emits the launch for x [M, K], packed w and the output's buffers."""
    work = output.work
    columns = cut.features // 2 if output.activation else cut.features
    grid = (-(-work.rows // cut.rows), -(-output.features // columns))

    with launch(grid, cut.rows // WARP_ROWS * WARP) as (tile_row, tile_column, thread):
        memory = shared(cut.stages * (cut.rows + cut.features) * _ROW_BYTES, "uint8", dynamic=True)
        block = _Block(output, cut, memory, tile_row, tile_column, thread)
        sums = [registers(cut.features // 2) for _ in range(WARP_ROWS // 16)]
        for column in sums:
            for i in range(cut.features // 2):
                T.buffer_store(column, T.float32(0), [i])
        for ahead in range(cut.stages - 1):
            block.load(x, w, T.int32(ahead), T.int32(ahead))
        with T.serial(0, -(-work.depth // TILE_DEPTH)) as index:
            # All threads have read the slot that is loaded next when the barrier lets them go.
            wait_copies(cut.stages - 2)
            barrier()
            block.load(x, w, index + cut.stages - 1, (index + cut.stages - 1) % cut.stages)
            block.multiply(sums, index % cut.stages, str(x.dtype))
        for i, column in enumerate(sums):
            row = tile_row * cut.rows + thread // WARP * WARP_ROWS + i * 16 + thread % WARP // 4
            output.store(column, rest, row, tile_column * columns + 2 * (thread % 4), columns)


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
