"""Kernels that pick rows: last real tokens, and which row of an embedding a token has."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.flat import Each
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def token_row(ids: Buffer, token: Expr, vocab: int) -> Expr:
    """A token's row; one that is none takes the nearest there is."""
    return T.Bind(T.cast(T.max(T.min(ids[token], T.int64(vocab - 1)), T.int64(0)), "int32"))


def last_row(name: str, rows: int, width: int, depth: int, *, each: Each) -> tvm.tirx.PrimFunc:
    """y[b] = x[b, count[b]-1]; arguments x [rows, width, depth], count int32 [rows], y [rows, 1, depth]."""

    def body(x: Buffer, count: Buffer, y: Buffer) -> None:
        def copy(row: Expr, k: Expr) -> None:
            token = T.Bind(T.max(T.min(count[row], width) - 1, 0))
            T.buffer_store(y, x[row, token, k], [row, 0, k])

        each((rows, depth), copy)

    args = [Arg("x", (rows, width, depth)), Arg("count", (rows,), "int32"), Arg("y", (rows, 1, depth))]
    return kernel(name, args, body)
