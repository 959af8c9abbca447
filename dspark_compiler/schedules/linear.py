"""x @ W.T on the CPU with W packed in panels: one layout and one summation order for any number of rows.

W [N, K] is stored as [ceil(N/P), K, P], P two vector registers wide (BLIS calls this a packed B panel, Van Zee & van de
Geijn 2015). A task streams panels front to back, which is what hardware prefetch likes, and each output sums over k in
order, so a row's result is bit for bit the same for 1, 8 or 128 rows and under any schedule.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, prefetch, vector, when
from dspark_compiler.schedules.vector_math import load_weight

# (sum, row, feature, extra buffers) -> the value to store
Epilogue = Callable[[Expr, Expr, Expr, Sequence[Buffer]], Expr]

_WORKLOAD = "dspark.linear"  # function attribute: the workload, for the tuner


@dataclass(frozen=True)
class LinearWorkload:
    """One packed product: y[rows, features] = x[rows, depth] @ W.T, W stored as ``weight_dtype``."""

    rows: int
    features: int
    depth: int
    weight_dtype: str = "float32"


@dataclass(frozen=True)
class LinearSchedule:
    """How packed_linear cuts its loops; none of it changes a result."""

    rows: int  # height of the register tile
    panels: int = 1  # panels it covers: more sums under way at once, fewer and longer tasks
    prefetch: int = 0  # steps of k ahead of which weights are asked for; 0 leaves that to the hardware


def packed_shape(features: int, depth: int, isa: VectorIsa) -> tuple[int, int, int]:
    """Shape of W [features, depth] after packing."""
    return (-(-features // isa.panel), depth, isa.panel)


def default_schedule(work: LinearWorkload, isa: VectorIsa) -> LinearSchedule:
    """The schedule without a record: tall tiles, one panel a task, prefetch by the hardware."""
    return LinearSchedule(_tile_rows(work.rows, isa.max_rows))


def candidate_schedules(work: LinearWorkload, isa: VectorIsa) -> list[LinearSchedule]:
    """What is worth measuring, the default first: tiles that fit the registers, near-square cuts of the rows."""
    panels = packed_shape(work.features, work.depth, isa)[0]
    heights = {_tile_rows(work.rows, isa.max_rows)}
    tiles = -(-work.rows // isa.max_rows)
    heights.update(-(-work.rows // count) for count in range(tiles, min(tiles + 2, work.rows) + 1))
    shapes = [(rows, together) for rows in sorted(heights, reverse=True) for together in (1, 2, 4)]
    fitting = [(rows, n) for rows, n in shapes if rows * n <= isa.max_rows and n <= panels]
    default = default_schedule(work, isa)
    every = [LinearSchedule(rows, n, ahead) for ahead in (0, 32) for rows, n in fitting]
    return [default, *(schedule for schedule in every if schedule != default)]


def _tile_rows(rows: int, limit: int) -> int:
    """Rows of the register tile: the whole if it fits, else the divisor, or least ragged height, near the limit."""
    if rows <= limit:
        return rows
    candidates = range(limit, limit // 2, -1)
    exact = [height for height in candidates if rows % height == 0]
    if exact:
        return exact[0]
    return min(candidates, key=lambda height: -rows % height)


def packed_linear(
    name: str,
    work: LinearWorkload,
    isa: VectorIsa,
    schedule: LinearSchedule | None = None,
    *,
    extras: Sequence[Arg] = (),
    epilogue: Epilogue | None = None,
) -> tvm.tirx.PrimFunc:
    """y[M,N] = epilogue(x[M,K] @ W.T) in float32; arguments x, packed W, extras, y.

    Args:
        name: name of the function.
        work: M, N, K and the stored type of W: float32, float16 or uint16 (bfloat16 bits).
        isa: vector width and registers of the target.
        schedule: how the loops are cut; None for the default.
        extras: further inputs the epilogue reads.
        epilogue: applied to each sum before it is stored.
    """
    panels, _, width = packed_shape(work.features, work.depth, isa)
    cut = schedule or default_schedule(work, isa)

    def body(x: Buffer, w: Buffer, *rest: Buffer) -> None:
        *extra, y = rest

        def tile(task: Expr, first: Expr, count: int) -> None:
            # The last task may have panels to spare; it does its last one again.
            covered = [T.min(task * cut.panels + p, panels - 1) if cut.panels > 1 else task for p in range(cut.panels)]
            sums = [[local(width) for _ in range(count)] for _ in covered]
            _accumulate(sums, x, w, covered, first, work.depth, cut.prefetch, isa)
            for panel, column in zip(covered, sums, strict=True):
                for i, acc in enumerate(column):
                    _store(acc, y, first + i, panel, work.features, isa, epilogue, extra)

        with T.parallel(0, -(-panels // cut.panels)) as task:
            _for_each_tile(work.rows, cut.rows, lambda first, count: tile(task, first, count))

    args = [
        Arg("x", (work.rows, work.depth)),
        Arg("w", (panels, work.depth, width), work.weight_dtype),
        *extras,
        Arg("y", (work.rows, work.features)),
    ]
    return kernel(name, args, body).with_attr(_WORKLOAD, asdict(work))


def workload_of(function: tvm.tirx.PrimFunc) -> LinearWorkload | None:
    """What packed_linear was asked for when it made ``function``; None if something else made it."""
    attributes = function.attrs.get(_WORKLOAD)
    if attributes is None:
        return None
    sizes = (int(attributes[name]) for name in ("rows", "features", "depth"))
    return LinearWorkload(*sizes, weight_dtype=str(attributes["weight_dtype"]))


def _for_each_tile(rows: int, height: int, tile: Callable[[Expr, int], None]) -> None:
    if rows == height:
        tile(0, rows)
        return
    with T.serial(0, rows // height) as block:
        tile(block * height, height)
    if rows % height:
        tile(rows - rows % height, rows % height)


def _accumulate(
    sums: list[list[Buffer]],
    x: Buffer,
    w: Buffer,
    panels: list[Expr],
    first: Expr,
    depth: int,
    ahead: int,
    isa: VectorIsa,
) -> None:
    """sums[p][i][:] = sum over k of x[first+i, k] * w[panels[p], k, :], all sums held in registers."""
    for acc in (acc for column in sums for acc in column):
        with vector(isa.panel) as lane:
            T.buffer_store(acc, T.float32(0.0), [lane])
    with T.serial(0, depth) as k:
        for panel, column in zip(panels, sums, strict=True):
            if ahead:
                # Past the weight's end a prefetch does nothing.
                prefetch(w, (panel, k + ahead, 0), isa.panel)
            for i, acc in enumerate(column):
                with vector(isa.panel) as lane:
                    T.buffer_store(acc, acc[lane] + x[first + i, k] * load_weight(w, [panel, k, lane]), [lane])


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
