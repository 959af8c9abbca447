"""Kernels that pick rows: token embeddings; and counters, all zero."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.quantization.weight_format import CodeType, WeightFormat
from dspark_compiler.schedules.gpu.rows import token_row
from dspark_compiler.schedules.simt.awaited import hands_on, publish
from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.stored import widen
from dspark_compiler.schedules.simt.weights import WeightForm, WeightReader
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def row_embedding(
    name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str, hands_over: bool = False
) -> tvm.tirx.PrimFunc:
    """y[t] = W[ids[t]], W [vocab, depth] as stored; arguments ids int64 [tokens], W, y float32 [tokens, depth].

    ``hands_over``: y may be awaited (awaited.py).
    """
    return _embedding(name, tokens, WeightForm(vocab, depth, weight_dtype), hands_over, packed=False)


def packed_embedding(
    name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str, hands_over: bool = False
) -> tvm.tirx.PrimFunc:
    """The same out of a weight as products read it (weights.py)."""
    return _embedding(name, tokens, WeightForm(vocab, depth, weight_dtype), hands_over, packed=True)


def quantized_embedding(
    name: str, tokens: int, vocab: int, depth: int, *, codes_kept: CodeType, scale_dtype: str
) -> tvm.tirx.PrimFunc:
    """The same out of codes with a scale a row; arguments ids, those of the weight (weights.py), y."""
    form = WeightForm(vocab, depth, WeightFormat(codes_kept).tag, scale_dtype)

    def body(ids: Buffer, *buffers: Buffer) -> None:
        weight = WeightReader(form, dict(zip((arg.name for arg in form.args()), buffers, strict=False)))

        def copy(token: Expr, k: Expr) -> None:
            T.buffer_store(buffers[-1], weight.element(token_row(ids, token, vocab), k), [token, k])

        each((tokens, depth), copy)

    return kernel(name, [Arg("ids", (tokens,), "int64"), *form.args(), Arg("y", (tokens, depth))], body)


def _embedding(name: str, tokens: int, form: WeightForm, hands_over: bool, *, packed: bool) -> tvm.tirx.PrimFunc:
    vocab, depth, dtype = form.features, form.depth, form.stored

    def body(ids: Buffer, w: Buffer, y: Buffer) -> None:
        def copy(token: Expr, k: Expr) -> None:
            row = token_row(ids, token, vocab)
            found = w[form.place(row, k) if packed else (row, k)]
            if hands_over:
                publish(y, [token, k], widen(found, dtype))
            else:
                T.buffer_store(y, widen(found, dtype), [token, k])

        each((tokens, depth), copy)

    stored = Arg("w", (vocab, form.padded if packed else depth), dtype)
    args = [Arg("ids", (tokens,), "int64"), stored, Arg("y", (tokens, depth))]
    function = kernel(name, args, body)
    return hands_on(function, args, publishes=["y"]) if hands_over else function


def zeros(name: str, count: int) -> tvm.tirx.PrimFunc:
    """Kernel for y = 0, y uint32 [count]: counters before a step."""

    def body(y: Buffer) -> None:
        each((count,), lambda i: T.buffer_store(y, T.uint32(0), [i]))

    return kernel(name, [Arg("y", (count,), "uint32")], body, block=True)
