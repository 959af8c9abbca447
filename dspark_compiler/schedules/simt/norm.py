"""Root-mean-square and layer normalisation: a work group a row. Sums are float32."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import TEAM, group_sum, launch, registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_MOST_THREADS = 256


def rms_norm(name: str, rows: int, depth: int, eps: float, *, weighted: bool = True) -> tvm.tirx.PrimFunc:
    """Kernel for y = x / sqrt(mean(x^2) + eps) * weight; arguments x [rows, depth], [weight [depth]], y."""
    threads = _threads(depth)

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with launch((rows,), threads) as (row, thread):
            squares = _sum(depth, thread, threads, lambda i: x[row, i] * x[row, i])
            inverse = _inverse_root(squares, depth, eps)

            def put(i: Expr) -> None:
                value = x[row, i] * inverse
                T.buffer_store(y, value * rest[0][i] if weighted else value, [row, i])

            _for_columns(depth, thread, threads, put)

    args = [Arg("x", (rows, depth)), *([Arg("weight", (depth,))] if weighted else []), Arg("y", (rows, depth))]
    return kernel(name, args, body, block=len(args) == 2)


def layer_norm(
    name: str, rows: int, depth: int, eps: float, *, weighted: bool = True, biased: bool = True
) -> tvm.tirx.PrimFunc:
    """Kernel for y = (x - mean) / sqrt(var + eps) * weight + bias; arguments x [rows, depth], [weight], [bias], y."""
    threads = _threads(depth)

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with launch((rows,), threads) as (row, thread):
            mean = T.Bind(_sum(depth, thread, threads, lambda i: x[row, i]) * T.float32(1.0 / depth))
            squares = _sum(depth, thread, threads, lambda i: (x[row, i] - mean) * (x[row, i] - mean))
            inverse = _inverse_root(squares, depth, eps)

            def put(i: Expr) -> None:
                value = (x[row, i] - mean) * inverse
                value = value * rest[0][i] if weighted else value
                T.buffer_store(y, value + rest[-2][i] if biased else value, [row, i])

            _for_columns(depth, thread, threads, put)

    names = [*(["weight"] if weighted else []), *(["bias"] if biased else [])]
    args = [Arg("x", (rows, depth)), *(Arg(n, (depth,)) for n in names), Arg("y", (rows, depth))]
    return kernel(name, args, body, block=len(args) == 2)


def _threads(depth: int) -> int:
    """A few columns a thread, whole teams."""
    return min(_MOST_THREADS, -(-depth // TEAM) * TEAM)


def _for_columns(depth: int, thread: Expr, threads: int, emit: Callable[[Expr], None]) -> None:
    """Calls emit(column) for those that are a thread's."""
    with T.serial(0, depth // threads) as turn:
        emit(turn * threads + thread)
    if depth % threads:
        with when(thread < depth % threads):
            emit(depth // threads * threads + thread)


def _sum(depth: int, thread: Expr, threads: int, term: Callable[[Expr], Expr]) -> Expr:
    """Sum of term(i) over a row."""
    partial = registers(1)
    T.buffer_store(partial, T.float32(0.0), [0])
    _for_columns(depth, thread, threads, lambda i: T.buffer_store(partial, partial[0] + term(i), [0]))
    return group_sum(partial[0], thread, threads)


def _inverse_root(total: Expr, depth: int, eps: float) -> Expr:
    return T.Bind(T.float32(1.0) / T.sqrt(total * T.float32(1.0 / depth) + T.float32(eps)))
