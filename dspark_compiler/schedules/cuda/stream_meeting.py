"""How the workers of a streaming linear kernel bring their sums together, in the same order however many rows."""

from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.cluster import cluster_barrier, peer_float
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS
from dspark_compiler.schedules.cuda.stream_inputs import GROUP
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

# (sums of a row, one for each stripe a feature has a part in, row, feature) -> the value to store
Finish = Callable[[Sequence[Expr], Expr, Expr], Expr]

# Floats from one row of x to the next in a stripe's sums: lanes of a warp write to 32 different banks.
_ROW_STEP = TILE_ROWS + 4


def meet(
    sums: Sequence[Sequence[Buffer]], y: Buffer, first: Expr, rank: Expr, thread: Expr, cut: StreamSchedule, end: Finish
) -> None:
    """Adds the C fragments of all workers, sums[stripe][group of rows], and stores y from its stripe ``first`` on.

    The stripes are those of each part one after the other, ``cut.stripes`` a part.
    """
    rows, features = (int(extent) for extent in y.shape)
    threads = cut.warps * WARP
    slab = shared((cut.warps, len(sums), min(rows, GROUP), _ROW_STEP))
    for group in range(-(-rows // GROUP)):
        live = min(rows - group * GROUP, GROUP)
        for stripe, column in enumerate(sums):
            _put(column[group], slab, thread, stripe, live)
        _gather(cut)
        values = cut.stripes * live * TILE_ROWS
        for start in range(0, values, cut.splits * threads):
            index = start + rank * threads + thread
            with when(index < values):
                stripe, row, place = index // (live * TILE_ROWS), index // TILE_ROWS % live, index % TILE_ROWS
                feature = (first + stripe) * TILE_ROWS + place
                with when(feature < features):
                    totals = [
                        _total(slab, cut, part + stripe, row, place) for part in range(0, len(sums), cut.stripes)
                    ]
                    value = end(totals, group * GROUP + row, feature)
                    T.buffer_store(y, T.cast(value, y.dtype), [group * GROUP + row, feature])
        # Before the sums of the next rows, or the end, all have to be read.
        if cut.splits > 1 or (group + 1) * GROUP < rows:
            _gather(cut)


def _gather(cut: StreamSchedule) -> None:
    if cut.splits > 1:
        cluster_barrier()
    else:
        barrier()


def _put(sums: Buffer, slab: Buffer, thread: Expr, stripe: int, live: int) -> None:
    """Stores a C fragment (PTX ISA, "Matrix fragments for mma.m16n8k16"): features lane/4 and + 8, rows 2 (lane%4)."""
    lane = thread % WARP
    for i in range(4):
        row = lane % 4 * 2 + i % 2
        with when(row < live):
            T.buffer_store(slab, sums[i], [thread // WARP, stripe, row, lane // 4 + i // 2 * 8])


def _total(slab: Buffer, cut: StreamSchedule, stripe: Expr, row: Expr, place: Expr) -> Expr:
    """The sum of all workers' parts, in their order."""
    total = T.float32(0.0)
    for rank in range(cut.splits):
        for warp in range(cut.warps):
            if cut.splits == 1:
                total = total + slab[warp, stripe, row, place]
            else:
                total = total + peer_float(address(slab, warp, stripe, row, place), rank)
    return total
