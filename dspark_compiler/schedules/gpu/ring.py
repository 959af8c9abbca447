"""Kernels on a drafter's rings [B,G,W,D]: the rows of new tokens go in, the last confirmed token's row comes out."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.flat import Each
from dspark_compiler.schedules.gpu.slot_rows import fill_ring
from dspark_compiler.schedules.slot_rows import RowShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, int32, kernel


def write_ring(
    name: str, shape: RowShape, *, each: Each, sequence: bool = False, count: bool = False
) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] rows go to places (length[r] + i) % W of ring sequence[r]; of more than W, the last.

    Arguments: rows [b,G,S,D], ring [B,G,W,D], length, [sequence], [count], int32 [b] each. Without ``sequence`` row r
    goes to ring r, without ``count`` all S rows are real.
    """
    control = ["length", *(["sequence"] if sequence else []), *(["count"] if count else [])]

    def body(rows: Buffer, ring: Buffer, *numbers: Buffer) -> None:
        of = dict(zip(control, numbers, strict=True))
        fill_ring(
            shape,
            each,
            ring,
            rows,
            lambda r: of["sequence"][r] if sequence else r,
            lambda r: of["length"][r],
            lambda r: of["count"][r] if count else int32(shape.width),
        )

    args = [
        Arg("rows", (shape.rows, shape.heads, shape.width, shape.dim)),
        Arg("ring", (shape.batch, shape.heads, shape.places, shape.dim)),
        *(Arg(n, (shape.rows,), "int32") for n in control),
    ]
    return kernel(name, args, body)


def read_ring(name: str, shape: RowShape, *, each: Each, sequence: bool = False) -> tvm.tirx.PrimFunc:
    """out[r] = the row of the last of length[r] tokens, of ring sequence[r] or else r; zeros where there is none.

    Arguments: ring [B,G,W,D], length, [sequence], int32 [b] each, out [b,G,1,D].
    """

    def body(ring: Buffer, length: Buffer, *rest: Buffer) -> None:
        out = rest[-1]

        def copy(row: Expr, head: Expr, d: Expr) -> None:
            seq = rest[0][row] if sequence else row
            place = T.Bind(T.max(length[row] - 1, 0) % shape.places)
            value = T.Bind(ring[seq, head, place, d])
            T.buffer_store(out, T.Select(length[row] > 0, value, T.float32(0.0)), [row, head, 0, d])

        each((shape.rows, shape.heads, shape.dim), copy)

    args = [
        Arg("ring", (shape.batch, shape.heads, shape.places, shape.dim)),
        Arg("length", (shape.rows,), "int32"),
        *([Arg("sequence", (shape.rows,), "int32")] if sequence else []),
        Arg("out", (shape.rows, shape.heads, 1, shape.dim)),
    ]
    return kernel(name, args, body)
