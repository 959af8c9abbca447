"""How the warps of a streaming linear kernel bring their sums together, in the same order however many rows."""

from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS
from dspark_compiler.schedules.cuda.stream_inputs import GROUP
from dspark_compiler.schedules.cuda.stream_outputs import Outputs
from dspark_compiler.schedules.cuda.threads import WARP, barrier, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

# (sums of a row, one for each stripe a feature has a part in, which of the thread's values, row, feature): stores what
# becomes of them
Store = Callable[[Sequence[Expr], int, Expr, Expr], None]

# Floats from one row of x to the next in a stripe's sums: lanes of a warp write to 32 different banks.
_ROW_STEP = TILE_ROWS + 4


def meet(sums: Sequence[Sequence[Buffer]], outputs: Outputs, store: Store) -> None:
    """Adds the C fragments of all warps, sums[stripe][group of rows], and stores them.

    Args:
        sums: of each part ``outputs.stripes`` stripes; a feature's sums are those of the same place in all parts.
        outputs: of the block.
        store: gets features from 0.
    """
    warps = outputs.threads // WARP
    slab = shared((warps, len(sums), min(outputs.rows, GROUP), _ROW_STEP))

    def add_up(number: int, stripe: Expr, row: Expr, place: Expr) -> None:
        parts = range(0, len(sums), outputs.stripes)
        totals = [_total(slab, warps, part + stripe, row % GROUP, place) for part in parts]
        store(totals, number, row, stripe * TILE_ROWS + place)

    for group in range(outputs.groups):
        if group:
            barrier()  # the sums before are read
        for stripe, column in enumerate(sums):
            _put(column[group], slab, outputs.thread, stripe, outputs.live(group))
        barrier()
        outputs.of_group(group, add_up)


def _put(sums: Buffer, slab: Buffer, thread: Expr, stripe: int, live: int) -> None:
    """Stores a C fragment (PTX ISA, "Matrix fragments for mma.m16n8k16"): features lane/4 and + 8, rows 2 (lane%4)."""
    lane = thread % WARP
    for i in range(4):
        row = lane % 4 * 2 + i % 2
        with when(row < live):
            T.buffer_store(slab, sums[i], [thread // WARP, stripe, row, lane // 4 + i // 2 * 8])


def _total(slab: Buffer, warps: int, stripe: Expr, row: Expr, place: Expr) -> Expr:
    """The sum of all warps' parts, in their order."""
    total = T.float32(0.0)
    for warp in range(warps):
        total = total + slab[warp, stripe, row, place]
    return total
