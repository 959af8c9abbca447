"""Kernels that pick rows: token embeddings (also out of a packed weight shared with the LM head), last real tokens."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape, place
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def packed_embedding(name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]] out of W packed by fragments.py; arguments ids int64 [tokens], packed W, y [tokens, depth]."""

    def body(ids: Buffer, w: Buffer, y: Buffer) -> None:
        def copy(token: Expr, k: Expr) -> None:
            row = _row(ids, token, vocab)
            element = w[row // TILE_ROWS, k // TILE_DEPTH, place(row % TILE_ROWS, k % TILE_DEPTH)]
            T.buffer_store(y, T.cast(element, "float32"), [token, k])

        each((tokens, depth), copy)

    args = [
        Arg("ids", (tokens,), "int64"),
        Arg("w", fragment_shape(vocab, depth), weight_dtype),
        Arg("y", (tokens, depth)),
    ]
    return kernel(name, args, body)


def row_embedding(name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]], W [vocab, depth] as stored; arguments ids int64 [tokens], W, y [tokens, depth]."""

    def body(ids: Buffer, w: Buffer, y: Buffer) -> None:
        def copy(token: Expr, k: Expr) -> None:
            T.buffer_store(y, T.cast(w[_row(ids, token, vocab), k], "float32"), [token, k])

        each((tokens, depth), copy)

    args = [Arg("ids", (tokens,), "int64"), Arg("w", (vocab, depth), weight_dtype), Arg("y", (tokens, depth))]
    return kernel(name, args, body)


def last_row(name: str, rows: int, width: int, depth: int, *, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """y[b] = x[b, count[b]-1]; arguments x [rows, width, depth], count int32 [rows], y [rows, 1, depth]."""

    def body(x: Buffer, count: Buffer, y: Buffer) -> None:
        def copy(row: Expr, k: Expr) -> None:
            token = T.Bind(T.max(T.min(count[row], width) - 1, 0))
            T.buffer_store(y, x[row, token, k], [row, 0, k])

        each((rows, depth), copy)

    args = [Arg("x", (rows, width, depth), dtype), Arg("count", (rows,), "int32"), Arg("y", (rows, 1, depth), dtype)]
    return kernel(name, args, body)


def _row(ids: Buffer, token: Expr, vocab: int) -> Expr:
    """The row of a token, of the nearest one there is if it is none."""
    return T.Bind(T.cast(T.max(T.min(ids[token], T.int64(vocab - 1)), T.int64(0)), "int32"))
