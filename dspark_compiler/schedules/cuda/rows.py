"""Kernels that pick rows: token embeddings (also out of a packed weight shared with the LM head), last real tokens."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import E4M3FN, INT8
from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape, place
from dspark_compiler.schedules.cuda.quantized_fragments import quantized_shape, tile_depth
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


def quantized_embedding(
    name: str, tokens: int, vocab: int, depth: int, *, codes_kept: str, scale_dtype: str
) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]] out of bytes packed by quantized_fragments.py; arguments ids, codes, scale [vocab], y."""
    form = "float8_e4m3fn" if codes_kept == "float8_e4m3" else "int8"
    columns = tile_depth(form)

    def body(ids: Buffer, codes: Buffer, scale: Buffer, y: Buffer) -> None:
        def copy(token: Expr, k: Expr) -> None:
            row, octet, unit = _row(ids, token, vocab), k % TILE_DEPTH // 8, k % columns // TILE_DEPTH
            piece = row % TILE_ROWS // 8 * 512 + (row % 8 * 4 + octet) * 16 + unit * 8 + k % 8
            code = codes[row // TILE_ROWS, k // columns, piece]
            value = E4M3FN.load(code) if form == "float8_e4m3fn" else INT8.load(T.reinterpret("int8", code))
            T.buffer_store(y, value * scale[row], [token, k])

        each((tokens, depth), copy)

    args = [
        Arg("ids", (tokens,), "int64"),
        Arg("codes", quantized_shape(vocab, depth, form), "uint8"),
        Arg("scale", (vocab,), scale_dtype),
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
