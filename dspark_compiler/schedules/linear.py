"""x @ W.T on the CPU with W packed in panels: one layout and one summation order for any number of rows.

W [N, K] is stored as [ceil(N/P), K, P], P two vector registers wide (BLIS calls this a packed B panel, Van Zee & van de
Geijn 2015). A task streams panels front to back, which is what hardware prefetch likes, and each output sums over k in
order, so a row's result is bit for bit the same for 1, 8 or 128 rows and under any schedule.
"""

from collections.abc import Callable, Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import (
    LinearSchedule,
    LinearWorkload,
    default_schedule,
    packed_shape,
    tag,
)
from dspark_compiler.schedules.quantized_panels import weight_panels
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, made_once, vector, when

# (sum, row, feature, extra buffers) -> the value to store
Epilogue = Callable[[Expr, Expr, Expr, Sequence[Buffer]], Expr]


@made_once
def packed_linear(
    name: str,
    work: LinearWorkload,
    isa: VectorIsa,
    schedule: LinearSchedule | None = None,
    *,
    extras: tuple[Arg, ...] = (),
    epilogue: Epilogue | None = None,
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,N] = epilogue(x[M,K] @ W.T) in float32; arguments x, packed W (and its scales), extras, y.

    Args:
        name: name of the function.
        work: M, N, K and the stored type of W: float32, float16, uint16 (bfloat16 bits) or a quantized format's tag.
        isa: vector width and registers of the target.
        schedule: how the loops are cut; None for the default.
        extras: further inputs the epilogue reads.
        epilogue: applied to each sum before it is stored.
    """
    panels, _, width = packed_shape(work.features, work.depth, isa)
    cut = schedule or default_schedule(work, isa)
    source = weight_panels(work, isa)
    parts = len(source.args)

    def body(x: Buffer, *rest: Buffer) -> None:
        *extra, y = rest[parts:]
        weight = [*rest[:parts], *source.prepare(x)]

        def tile(task: Expr, first: Expr, count: int) -> None:
            # The last task may have panels to spare; it does its last one again.
            covered = [T.min(task * cut.panels + p, panels - 1) if cut.panels > 1 else task for p in range(cut.panels)]
            sums = [[local(width) for _ in range(count)] for _ in covered]
            source.accumulate(sums, x, weight, covered, first, cut.prefetch)
            for panel, column in zip(covered, sums, strict=True):
                for i, acc in enumerate(column):
                    _store(acc, y, first + i, panel, work.features, isa, epilogue, extra)

        with T.parallel(0, -(-panels // cut.panels)) as task:
            for_each_tile(work.rows, cut.rows, lambda first, count: tile(task, first, count))

    args = [
        Arg("x", (work.rows, work.depth)),
        *source.args,
        *extras,
        Arg("y", (work.rows, work.features)),
    ]
    return tag(kernel(name, args, body), work)


def for_each_tile(rows: int, height: int, tile: Callable[[Expr, int], None]) -> None:
    """Emits tile(first row, number of rows) over all rows, the last one lower where they do not divide."""
    if rows == height:
        tile(0, rows)
        return
    with T.serial(0, rows // height) as block:
        tile(block * height, height)
    if rows % height:
        tile(rows - rows % height, rows % height)


def _store(
    acc: Buffer,
    y: Buffer,
    row: Expr,
    panel: Expr,
    features: int,
    isa: VectorIsa,
    epilogue: Epilogue | None,
    extra: Sequence[Buffer],
) -> None:
    """Writes one row of a tile; the last panel may be wider than the output."""
    width = isa.panel

    def put(lane: Expr) -> None:
        feature = panel * width + lane
        value = acc[lane] if epilogue is None else epilogue(acc[lane], row, feature, extra)
        T.buffer_store(y, value, [row, feature])

    if features % width == 0:
        with vector(width) as lane:
            put(lane)
        return
    with T.If(panel < features // width):
        with T.Then(), vector(width) as lane:
            put(lane)
        with T.Else(), T.serial(0, width) as lane, when(panel * width + lane < features):
            put(lane)
