"""Rotary positions, read where the projection left them and written head by head for attention."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.rope import RopeShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def rope(name: str, shape: RopeShape, *, in_dtype: str = "float32", out_dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """Kernel for y = x * cos + [-x2, x1] * sin; arguments x, cos [b,1,S,D], sin [b,1,S,D], y [b,H,S,D]."""
    half = shape.dim // 2

    def body(x: Buffer, cos: Buffer, sin: Buffer, y: Buffer) -> None:
        def load(row: Expr, head: Expr, token: Expr, d: Expr) -> Expr:
            if len(shape.source) == 2:
                value = x[row * shape.width + token, shape.offset + head * shape.dim + d]
            else:
                value = x[row, head, token, d]
            return T.Bind(T.cast(value, "float32"))

        def rotate(row: Expr, head: Expr, token: Expr, d: Expr) -> None:
            low, high = load(row, head, token, d), load(row, head, token, d + half)
            for at, value, other in ((d, low, T.float32(0.0) - high), (d + half, high, low)):
                turned = value * cos[row, 0, token, at] + other * sin[row, 0, token, at]
                T.buffer_store(y, T.cast(turned, out_dtype), [row, head, token, at])

        each((shape.rows, shape.heads, shape.width, half), rotate)

    table = (shape.rows, 1, shape.width, shape.dim)
    args = [
        Arg("x", shape.source, in_dtype),
        Arg("cos", table),
        Arg("sin", table),
        Arg("y", (shape.rows, shape.heads, shape.width, shape.dim), out_dtype),
    ]
    return kernel(name, args, body)
