"""Rotary positions, read where the projection left them and written head by head for attention."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.flat import Each
from dspark_compiler.schedules.rope import RopeShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel

# An element of the first half turned, of (first, cos, second, sin): first * cos - second * sin.
Turn = Callable[[Expr, Expr, Expr, Expr], Expr]


def rope(name: str, shape: RopeShape, *, each: Each, turn: Turn) -> tvm.tirx.PrimFunc:
    """Kernel for y = x * cos + [-x2, x1] * sin; arguments x, cos [b,1,S,D], sin [b,1,S,D], y [b,H,S,D]."""
    half = shape.dim // 2
    by_token = len(shape.source) == 2

    def body(x: Buffer, cos: Buffer, sin: Buffer, y: Buffer) -> None:
        def load(row: Expr, head: Expr, token: Expr, d: Expr) -> Expr:
            if by_token:
                return x[row * shape.width + token, shape.offset + head * shape.dim + d]
            return x[row, head, token, d]

        def rotate(row: Expr, head: Expr, token: Expr, d: Expr) -> None:
            first, second = T.Bind(load(row, head, token, d)), T.Bind(load(row, head, token, d + half))
            low = turn(first, cos[row, 0, token, d], second, sin[row, 0, token, d])
            high = second * cos[row, 0, token, d + half] + first * sin[row, 0, token, d + half]
            T.buffer_store(y, low, [row, head, token, d])
            T.buffer_store(y, high, [row, head, token, d + half])

        each((shape.rows, shape.heads, shape.width, half), rotate)

    table = (shape.rows, 1, shape.width, shape.dim)
    args = [
        Arg("x", shape.source),
        Arg("cos", table),
        Arg("sin", table),
        Arg("y", (shape.rows, shape.heads, shape.width, shape.dim)),
    ]
    return kernel(name, args, body)
