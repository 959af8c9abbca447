"""x @ W.T on the CPU with W packed in panels: one layout and one summation order for any number of rows.

W [N, K] is stored as [ceil(N/P), K, P], P two vector registers wide (BLIS calls this a packed B panel, Van Zee & van de
Geijn 2015). A task streams a panel front to back, which is what hardware prefetch likes, and each output sums over k
in order, so a row's result is bit for bit the same for 1, 8 or 128 rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm.tirx.script.builder import ir as T  # noqa: N812

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, vector, when
from dspark_compiler.schedules.vector_math import load_weight

# (sum, row, feature, extra buffers) -> the value to store
Epilogue = Callable[[Expr, Expr, Expr, Sequence[Buffer]], Expr]


def packed_shape(features: int, depth: int, isa: VectorIsa) -> tuple[int, int, int]:
    """Shape of W [features, depth] after packing."""
    return (-(-features // isa.panel), depth, isa.panel)


def tile_rows(rows: int, limit: int) -> int:
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
    rows: int,
    features: int,
    depth: int,
    isa: VectorIsa,
    *,
    weight_dtype: str = "float32",
    extras: Sequence[Arg] = (),
    epilogue: Epilogue | None = None,
) -> tvm.tirx.PrimFunc:
    """y[M,N] = epilogue(x[M,K] @ W.T); arguments x, packed W, extras, y.

    Args:
        name: name of the function.
        rows: M.
        features: N.
        depth: K.
        isa: vector width and registers of the target.
        weight_dtype: float32, float16 or uint16 (bfloat16 bits); sums are float32.
        extras: further inputs the epilogue reads.
        epilogue: applied to each sum before it is stored.
    """
    panels, _, width = packed_shape(features, depth, isa)
    height = tile_rows(rows, isa.max_rows)

    def body(x: Buffer, w: Buffer, *rest: Buffer) -> None:
        *extra, y = rest

        def tile(panel: Expr, first: Expr, count: int) -> None:
            sums = [local(width) for _ in range(count)]
            _accumulate(sums, x, w, panel, first, depth, isa)
            for i, acc in enumerate(sums):
                _store(acc, y, first + i, panel, features, isa, epilogue, extra)

        with T.parallel(0, panels) as panel:
            if rows == height:
                tile(panel, 0, rows)
            else:
                with T.serial(0, rows // height) as block:
                    tile(panel, block * height, height)
                if rows % height:
                    tile(panel, rows - rows % height, rows % height)

    args = [
        Arg("x", (rows, depth)),
        Arg("w", (panels, depth, width), weight_dtype),
        *extras,
        Arg("y", (rows, features)),
    ]
    return kernel(name, args, body)


def _accumulate(
    sums: list[Buffer], x: Buffer, w: Buffer, panel: Expr, first: Expr, depth: int, isa: VectorIsa
) -> None:
    """sums[i][:] = sum over k of x[first+i, k] * w[panel, k, :], all sums held in registers."""
    width = isa.panel
    for acc in sums:
        with vector(width) as lane:
            T.buffer_store(acc, T.float32(0.0), [lane])
    with T.serial(0, depth) as k:
        for i, acc in enumerate(sums):
            with vector(width) as lane:
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

    def put(lane: Any) -> None:
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
