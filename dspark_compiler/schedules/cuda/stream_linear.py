"""x @ W.T for few rows on Nvidia GPUs, at the speed at which W comes from memory; bias, residual and gate ride along.

W lies in tiles (fragments.py). A block takes a few stripes of 16 features, its warps share their depth, and so may the
blocks of a cluster; the parts meet in shared memory and are added in a fixed order, the same for any number of rows.
"""

from collections.abc import Callable, Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.cluster import cluster_barrier, clustered, peer_float
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule, default_stream_schedule
from dspark_compiler.schedules.cuda.stream_tiles import GROUP, Worker, stream_tiles
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, launch, shared
from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

# (sums of a row, one for each stripe a feature has a part in, row, feature) -> the value to store
Finish = Callable[[Sequence[Expr], Expr, Expr], Expr]

# Floats from one row of x to the next in a stripe's sums: lanes of a warp write to 32 different banks.
_ROW_STEP = TILE_ROWS + 4


def stream_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    *,
    bias: bool = False,
    residual: bool = False,
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,N] = x[M,K] @ W.T (+ bias) (+ residual); arguments x, packed W, [bias [N]], [residual [M,N]], y.

    Args:
        name: name of the function.
        work: M (1 to 32), N, K (a multiple of 8).
        dtype: of x and W, "bfloat16" or "float16"; sums, bias and residual are float32.
        schedule: how the work is cut; None for the default.
        bias: whether there is a bias.
        residual: whether something is added to the whole result.
        out_dtype: of y.
    """
    cut = schedule or default_stream_schedule(work)
    stripes, _, _ = fragment_shape(work.features, work.depth)

    def body(x: Buffer, w: Buffer, *rest: Buffer) -> None:
        *extra, y = rest

        def finish(sums: Sequence[Expr], row: Expr, feature: Expr) -> Expr:
            (value,) = sums
            terms = list(extra)
            if bias:
                value = value + terms.pop(0)[feature]
            if residual:
                value = value + written_float(address(terms.pop(0), row, feature))
            return value

        _stream(x, w, y, cut, [0], stripes, dtype, finish)

    args = [
        Arg("x", (work.rows, work.depth), dtype),
        Arg("w", fragment_shape(work.features, work.depth), dtype),
        *([Arg("bias", (work.features,))] if bias else []),
        *([Arg("residual", (work.rows, work.features))] if residual else []),
        Arg("y", (work.rows, work.features), out_dtype),
    ]
    return tag(kernel(name, args, body), work)


def _stream(
    x: Buffer, w: Buffer, y: Buffer, cut: StreamSchedule, parts: Sequence[int], stripes: int, dtype: str, finish: Finish
) -> None:
    """Emits the launch: y's stripe s is made from W's stripes s + p for each p of ``parts``."""
    count = cut.stripes
    threads = cut.warps * WARP
    rows, features = (int(extent) for extent in y.shape)
    with launch((stripes // count * cut.splits,), threads) as (block, thread), clustered(cut.splits):
        first, rank = block // cut.splits * count, block % cut.splits
        worker = Worker(rank * cut.warps + thread // WARP, cut.splits * cut.warps, thread % WARP)
        taken = [first + j + part for part in parts for j in range(count)]
        sums = stream_tiles(x, w, taken, worker, cut.ahead, dtype)
        height = min(rows, GROUP)
        slab = shared((cut.warps, len(taken), height, _ROW_STEP))
        for group in range(-(-rows // GROUP)):
            live = min(rows - group * GROUP, GROUP)
            for j, column in enumerate(sums):
                _put(column[group], slab, thread // WARP, j, thread % WARP, live)
            _meet(cut)
            share = count // cut.splits
            values = share * live * TILE_ROWS
            for start in range(0, values, threads):
                index = start + thread
                with when(index < values):
                    j = rank * share + index // (live * TILE_ROWS)
                    row, place = index // TILE_ROWS % live, index % TILE_ROWS
                    feature = (first + j) * TILE_ROWS + place
                    totals = [_total(slab, cut, part * count + j, row, place) for part in range(len(parts))]
                    with when(feature < features):
                        value = finish(totals, group * GROUP + row, feature)
                        T.buffer_store(y, T.cast(value, y.dtype), [group * GROUP + row, feature])
            if cut.splits > 1 or (group + 1) * GROUP < rows:
                _meet(cut)


def _meet(cut: StreamSchedule) -> None:
    if cut.splits > 1:
        cluster_barrier()
    else:
        barrier()


def _put(sums: Buffer, slab: Buffer, warp: Expr, stripe: int, lane: Expr, live: int) -> None:
    """Stores a C fragment (PTX ISA, "Matrix fragments for mma.m16n8k16"): features lane/4 and + 8, rows 2 (lane%4)."""
    for i in range(4):
        row = lane % 4 * 2 + i % 2
        with when(row < live):
            T.buffer_store(slab, sums[i], [warp, stripe, row, lane // 4 + i // 2 * 8])


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


def written_float(pointer: Expr) -> Expr:
    """A float32 that an earlier kernel wrote; never read before ``await_previous``."""
    source = """
__device__ __forceinline__ float dspark_written_float(const void* p) {
  float v; asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory"); return v;
}
"""
    return device("dspark_written_float", pointer, source=source, returns="float32")
