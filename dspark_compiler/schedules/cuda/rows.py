"""Kernels that pick rows: token embeddings, also out of a packed weight shared with the LM head."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import E4M3FN, INT8
from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape, place
from dspark_compiler.schedules.cuda.quantized_fragments import quantized_shape, tile_depth
from dspark_compiler.schedules.gpu.rows import token_row
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def packed_embedding(name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]] out of W packed by fragments.py; arguments ids int64 [tokens], packed W, y [tokens, depth]."""

    def body(ids: Buffer, w: Buffer, y: Buffer) -> None:
        def copy(token: Expr, k: Expr) -> None:
            row = token_row(ids, token, vocab)
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
            row, octet, unit = token_row(ids, token, vocab), k % TILE_DEPTH // 8, k % columns // TILE_DEPTH
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
            T.buffer_store(y, T.cast(w[token_row(ids, token, vocab), k], "float32"), [token, k])

        each((tokens, depth), copy)

    args = [Arg("ids", (tokens,), "int64"), Arg("w", (vocab, depth), weight_dtype), Arg("y", (tokens, depth))]
    return kernel(name, args, body)
