"""Root-mean-square and layer normalisation: a warp or a block a row, which it reads once. Sums are float32."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.row_threads import RowThreads
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def rms_norm(
    name: str,
    rows: int,
    depth: int,
    eps: float,
    *,
    weighted: bool = True,
    in_dtype: str = "float32",
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y = x / sqrt(mean(x^2) + eps) * weight; arguments x [rows, depth], [weight [depth]], y."""
    spread = RowThreads(rows, depth)

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with spread.launch() as (row, thread):
            held = spread.load(thread, lambda i: x[row, i])
            inverse = _inverse_root(spread.total(thread, held, lambda value: value * value), depth, eps)

            def put(value: Expr, i: Expr) -> None:
                scaled = value * inverse
                scaled = scaled * rest[0][i] if weighted else scaled
                T.buffer_store(y, T.cast(scaled, out_dtype), [row, i])

            spread.store(thread, held, put)

    weight = [Arg("weight", (depth,))] if weighted else []
    args = [Arg("x", (rows, depth), in_dtype), *weight, Arg("y", (rows, depth), out_dtype)]
    return kernel(name, args, body, block=len(args) == 2)


def layer_norm(
    name: str,
    rows: int,
    depth: int,
    eps: float,
    *,
    weighted: bool = True,
    biased: bool = True,
    in_dtype: str = "float32",
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y = (x - mean) / sqrt(var + eps) * weight + bias; arguments x [rows, depth], [weight], [bias], y."""
    spread = RowThreads(rows, depth)

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with spread.launch() as (row, thread):
            held = spread.load(thread, lambda i: x[row, i])
            mean = T.Bind(spread.total(thread, held, lambda value: value) * T.float32(1.0 / depth))
            off = spread.total(thread, held, lambda value: (value - mean) * (value - mean))
            inverse = _inverse_root(off, depth, eps)

            def put(value: Expr, i: Expr) -> None:
                scaled = (value - mean) * inverse
                scaled = scaled * rest[0][i] if weighted else scaled
                scaled = scaled + rest[-2][i] if biased else scaled
                T.buffer_store(y, T.cast(scaled, out_dtype), [row, i])

            spread.store(thread, held, put)

    names = [*(["weight"] if weighted else []), *(["bias"] if biased else [])]
    vectors = [Arg(n, (depth,)) for n in names]
    args = [Arg("x", (rows, depth), in_dtype), *vectors, Arg("y", (rows, depth), out_dtype)]
    return kernel(name, args, body, block=len(args) == 2)


def _inverse_root(total: Expr, depth: int, eps: float) -> Expr:
    return T.Bind(T.float32(1.0) / T.sqrt(total * T.float32(1.0 / depth) + T.float32(eps)))
