"""What warpgroups have multiplied goes to y through shared memory, where a tile's rows are short: they go on at once.

A slab is 64 rows by 128 bytes of y in the 128-byte swizzle: threads write it free of bank conflicts, the copy engine
takes it from there, and clips what y does not have. A warpgroup has two, which is why longer rows are not for it: it
would wait for the copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import wgmma
from dspark_compiler.schedules.cuda.async_copy import publish_writes
from dspark_compiler.schedules.cuda.tensor_maps import SWIZZLE_128, TensorMap, tensor_map, wait_stores
from dspark_compiler.schedules.cuda.threads import WARP, address
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.warp import part_barrier
from dspark_compiler.schedules.tir import Buffer, Expr, when

_ROW, _SLABS = 128, 2
_SLAB = wgmma.GROUP_ROWS * _ROW


def slab_bytes(rows: int) -> int:
    """Shared memory for the slabs of a block of so many rows, a multiple of 64."""
    return rows * _ROW * _SLABS


@dataclass(frozen=True)
class Slabs:
    """The slabs of a block, at memory[at:], a multiple of 1 KB."""

    y: TensorMap
    output: TileOutput
    memory: Buffer
    at: int

    @staticmethod
    def map(output: TileOutput, y: Buffer, columns: int) -> TensorMap | None:
        """How the copy engine sees y; None if tiles of so many columns of it do not go through slabs."""
        size = DataType(output.out_dtype).bits // 8
        whole = output.features * size % 16 == 0 and columns * size in range(_ROW, _ROW * _SLABS + 1, _ROW)
        if not whole or output.bias or output.residual:
            return None
        extents, box = (output.features, output.work.rows), (_ROW // size, wgmma.GROUP_ROWS)
        return tensor_map("y_slabs", y, extents, (output.features,), box, swizzle=SWIZZLE_128)

    def store(
        self, sums: Buffer, buffers: Sequence[Buffer], thread: Expr, row: Expr, column: Expr, columns: int
    ) -> None:
        """Starts storing a warpgroup's sums; ``row`` and ``column`` are the block's tile's, the rest TileOutput's."""
        size = DataType(self.output.out_dtype).bits // 8
        group, lane = thread // wgmma.WARPGROUP, thread % WARP
        slab = self.at + group * (_SLABS * _SLAB)
        mine = slab + (thread % wgmma.WARPGROUP // WARP * 16 + lane // 4) * _ROW
        with when(thread % wgmma.WARPGROUP == 0):
            wait_stores(0, read=True)
        part_barrier(group + 1, wgmma.WARPGROUP // WARP)
        for half, eight in product(range(2), range(columns // 8)):
            values = self.output.values(sums, 4 * eight + 2 * half, buffers, (row, column), columns)
            number, inside = divmod(eight * 8 * size, _ROW)
            inside = inside + lane % 4 * 2 * size  # bytes of the row
            piece = T.bitwise_xor(inside // 16, lane // 4) * 16 + inside % 16
            self.output.put_pair(address(self.memory, mine + number * _SLAB + half * 8 * _ROW + piece), values)
        publish_writes()
        part_barrier(group + 1, wgmma.WARPGROUP // WARP)
        with when(thread % wgmma.WARPGROUP == 0):
            for number in range(columns * size // _ROW):
                at = (column + number * (_ROW // size), row + group * wgmma.GROUP_ROWS)
                self.y.store(address(self.memory, slab + number * _SLAB), at)

    @staticmethod
    def finish(thread: Expr) -> None:
        """Waits for the stores of a warpgroup, before the block ends."""
        with when(thread % wgmma.WARPGROUP == 0):
            wait_stores(0)
