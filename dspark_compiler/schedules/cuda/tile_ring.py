"""Stages of x and W in shared memory that are filled by the copy engine while others are multiplied.

A stage is 64 columns of x's rows, in the 128-byte swizzle wgmma reads, and of W, packed tiles as they are; what lies
beyond the depth is zeros. Each has a barrier that tells it full and one that tells it empty.
"""

from dataclasses import dataclass
from itertools import product

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import async_copy
from dspark_compiler.schedules.cuda.fragments import TILE, TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.tensor_maps import SWIZZLE_128, TensorMap, tensor_map
from dspark_compiler.schedules.cuda.threads import WARP, address
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.tir import Buffer, Expr, when

STAGE_DEPTH = 64  # columns of a stage: 128 bytes of a row, the width of the swizzle
_ROW = 2 * STAGE_DEPTH
_PARTS = STAGE_DEPTH // TILE_DEPTH  # of a stage of W, each a copy's


def ring_bytes(cut: TileSchedule) -> int:
    """Shared memory of a ring, a multiple of 1 KB."""
    return cut.stages * (cut.rows + cut.features) * _ROW + 1024


@dataclass(frozen=True)
class Ring:
    """Barriers at memory[0:], stages behind them, x then W; steps count on over the ring's turns.

    The swizzle wants x at multiples of 1 KB: the block's only shared array begins at one.
    """

    memory: Buffer
    cut: TileSchedule

    def init(self, stage: Expr, multipliers: int) -> None:
        """Sets up a stage's barriers; as many warps will give it back."""
        async_copy.init_barrier(self._barrier(stage), 1)
        async_copy.init_barrier(self._barrier(stage + self.cut.stages), multipliers)

    def x(self, step: Expr, row: Expr) -> Expr:
        """Pointer to a row of x."""
        return address(self.memory, self._start(step) + row * _ROW)

    def w(self, step: Expr, tile: Expr) -> Expr:
        """Pointer to a tile of W; those of the first 32 columns come first."""
        return address(self.memory, self._start(step) + self.cut.rows * _ROW + tile * (2 * TILE))

    def claim(self, step: Expr) -> Expr:
        """Waits until a stage may be filled; returns the barrier its bytes count on."""
        stages = self.cut.stages
        async_copy.wait_phase(self._barrier(step % stages + stages), 1 - step // stages % 2)
        full = self._barrier(step % stages)
        async_copy.arrive_expecting(full, (self.cut.rows + self.cut.features) * _ROW)
        return full

    def wait(self, step: Expr) -> None:
        """Waits until a stage is filled."""
        async_copy.wait_phase(self._barrier(step % self.cut.stages), step // self.cut.stages % 2)

    def give_back(self, step: Expr, thread: Expr) -> None:
        """Tells that this warp is done with a stage."""
        with when(thread % WARP == 0):
            async_copy.arrive(self._barrier(step % self.cut.stages + self.cut.stages))

    def _start(self, step: Expr) -> Expr:
        return 1024 + step % self.cut.stages * ((self.cut.rows + self.cut.features) * _ROW)

    def _barrier(self, number: Expr) -> Expr:
        return address(self.memory, number * 8)


@dataclass(frozen=True)
class TileLoads:
    """The copies that fill a stage."""

    x: TensorMap
    w: TensorMap
    output: TileOutput
    cut: TileSchedule

    @staticmethod
    def of(x: Buffer, w: Buffer, output: TileOutput, cut: TileSchedule) -> "TileLoads":
        """Emitted before the launch."""
        work, pieces = output.work, 2 if output.activation else 1
        box = (STAGE_DEPTH, cut.rows)
        rows = tensor_map("x_rows", x, (work.depth, work.rows), (work.depth,), box, swizzle=SWIZZLE_128)
        # A packed tile as two rows of 256; of a box's tiles those below each other lie together.
        down, across = (int(extent) for extent in w.shape[:2])
        extents, strides = (TILE // 2, 2, down, across), (TILE // 2, TILE * across, TILE)
        tiles = tensor_map("w_tiles", w, extents, strides, (TILE // 2, 2, cut.features // TILE_ROWS // pieces, 1))
        return TileLoads(rows, tiles, output, cut)

    def start(self, ring: Ring, step: Expr, k: Expr, row: Expr, column: Expr) -> None:
        """Starts loading columns [64k, 64k + 64) of the operands of y's tile at (row, column)."""
        full = ring.claim(step)
        self.x.copy(ring.x(step, T.int32(0)), (k * STAGE_DEPTH, row), full)
        tiles, starts = self.cut.features // TILE_ROWS, [column // TILE_ROWS]
        if self.output.activation:  # gate, then up
            starts.append(starts[0] + self.output.features // TILE_ROWS)
        for part, (piece, start) in product(range(_PARTS), enumerate(starts)):
            target = ring.w(step, part * tiles + piece * (tiles // len(starts)))
            self.w.copy(target, (T.int32(0), T.int32(0), start, k * _PARTS + part), full)
