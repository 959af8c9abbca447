"""Kernels that pick rows: token embeddings (also out of a packed weight shared with the LM head), last real tokens."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import E4M3FN, INT8
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import packed_shape
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, vector, widest_vector
from dspark_compiler.schedules.vector_math import load_weight


def packed_embedding(
    name: str, tokens: int, vocab: int, depth: int, isa: VectorIsa, *, weight_dtype: str = "float32"
) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]] out of W packed for the LM head; arguments ids int64 [tokens], packed W, y [tokens, depth]."""

    def body(ids: Buffer, w: Buffer, y: Buffer) -> None:
        loop = T.parallel if tokens >= 16 else T.serial
        with loop(0, tokens) as token:
            row = T.Bind(T.cast(T.max(T.min(ids[token], T.int64(vocab - 1)), T.int64(0)), "int32"))
            with T.serial(0, depth) as k:
                T.buffer_store(y, load_weight(w, [row // isa.panel, k, row % isa.panel]), [token, k])

    args = [
        Arg("ids", (tokens,), "int64"),
        Arg("w", packed_shape(vocab, depth, isa), weight_dtype),
        Arg("y", (tokens, depth)),
    ]
    return kernel(name, args, body)


def quantized_embedding(
    name: str, tokens: int, vocab: int, depth: int, isa: VectorIsa, *, codes_kept: str, scale_dtype: str
) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]] out of eight-bit codes packed for the LM head; arguments ids, codes, a scale a row, y."""
    storage = E4M3FN if codes_kept == "float8_e4m3" else INT8

    def body(ids: Buffer, codes: Buffer, scales: Buffer, y: Buffer) -> None:
        loop = T.parallel if tokens >= 16 else T.serial
        with loop(0, tokens) as token:
            row = T.Bind(T.cast(T.max(T.min(ids[token], T.int64(vocab - 1)), T.int64(0)), "int32"))
            scale = T.Bind(load_weight(scales, [row // isa.panel, 0, row % isa.panel]))
            with T.serial(0, depth) as k:
                T.buffer_store(y, storage.load(codes[row // isa.panel, k, row % isa.panel]) * scale, [token, k])

    args = [
        Arg("ids", (tokens,), "int64"),
        Arg("codes", packed_shape(vocab, depth, isa), storage.dtype),
        Arg("scales", packed_shape(vocab, 1, isa), scale_dtype),
        Arg("y", (tokens, depth)),
    ]
    return kernel(name, args, body)


def row_embedding(
    name: str, tokens: int, vocab: int, depth: int, isa: VectorIsa, *, weight_dtype: str = "float32"
) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]], W [vocab, depth] as stored; arguments ids int64 [tokens], W, y [tokens, depth]."""
    lanes = widest_vector(depth, isa.lanes)

    def body(ids: Buffer, w: Buffer, y: Buffer) -> None:
        with T.serial(0, tokens) as token:
            row = T.Bind(T.cast(T.max(T.min(ids[token], T.int64(vocab - 1)), T.int64(0)), "int32"))
            with T.serial(0, depth // lanes) as chunk, vector(lanes) as lane:
                T.buffer_store(y, load_weight(w, [row, chunk * lanes + lane]), [token, chunk * lanes + lane])

    args = [Arg("ids", (tokens,), "int64"), Arg("w", (vocab, depth), weight_dtype), Arg("y", (tokens, depth))]
    return kernel(name, args, body)


def last_row(name: str, rows: int, width: int, depth: int, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """y[b] = x[b, count[b]-1]; arguments x [rows, width, depth], count int32 [rows], y [rows, 1, depth]."""
    lanes = widest_vector(depth, isa.lanes)

    def body(x: Buffer, count: Buffer, y: Buffer) -> None:
        with T.serial(0, rows) as row:
            token = T.Bind(T.max(T.min(count[row], width) - 1, 0))
            with T.serial(0, depth // lanes) as chunk, vector(lanes) as lane:
                T.buffer_store(y, x[row, token, chunk * lanes + lane], [row, 0, chunk * lanes + lane])

    args = [Arg("x", (rows, width, depth)), Arg("count", (rows,), "int32"), Arg("y", (rows, 1, depth))]
    return kernel(name, args, body)
