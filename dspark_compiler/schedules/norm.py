"""Root-mean-square and layer normalisation on the CPU, a row a task."""

from typing import Any

import tvm
from tvm.tirx.script.builder import ir as T  # noqa: N812

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, fill, kernel, local, vector, widest_vector

_MIN_PARALLEL = 8192  # elements below which waking threads costs more than it saves


def rms_norm(
    name: str, rows: int, depth: int, eps: float, isa: VectorIsa, *, weighted: bool = True
) -> tvm.tirx.PrimFunc:
    """y = x / sqrt(mean(x^2) + eps) * weight; arguments x [rows, depth], [weight [depth]], y."""

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with _rows(rows, depth) as row:
            inverse = _inverse_root(_sum(depth, isa, lambda i: x[row, i] * x[row, i]), depth, eps)
            for_each = _Columns(depth, isa)
            for_each(lambda i: T.buffer_store(y, _scaled(x[row, i] * inverse, rest[0], i, weighted), [row, i]))

    args = [Arg("x", (rows, depth)), *([Arg("weight", (depth,))] if weighted else []), Arg("y", (rows, depth))]
    return kernel(name, args, body, block=len(args) == 2)


def layer_norm(
    name: str, rows: int, depth: int, eps: float, isa: VectorIsa, *, weighted: bool = True, biased: bool = True
) -> tvm.tirx.PrimFunc:
    """y = (x - mean) / sqrt(var + eps) * weight + bias; arguments x [rows, depth], [weight], [bias], y."""

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with _rows(rows, depth) as row:
            mean = T.Bind(_sum(depth, isa, lambda i: x[row, i]) * T.float32(1.0 / depth))
            inverse = _inverse_root(_sum(depth, isa, lambda i: (x[row, i] - mean) * (x[row, i] - mean)), depth, eps)

            def put(i: Expr) -> None:
                value = _scaled((x[row, i] - mean) * inverse, rest[0], i, weighted)
                T.buffer_store(y, value + rest[-2][i] if biased else value, [row, i])

            _Columns(depth, isa)(put)

    names = [*(["weight"] if weighted else []), *(["bias"] if biased else [])]
    args = [Arg("x", (rows, depth)), *(Arg(n, (depth,)) for n in names), Arg("y", (rows, depth))]
    return kernel(name, args, body, block=len(args) == 2)


def _rows(rows: int, depth: int) -> Any:
    return (T.parallel if rows > 1 and rows * depth >= _MIN_PARALLEL else T.serial)(0, rows)


class _Columns:
    """Emits one vector statement for every stretch of a row."""

    def __init__(self, depth: int, isa: VectorIsa) -> None:
        self.depth, self.lanes = depth, widest_vector(depth, isa.lanes)

    def __call__(self, emit: Any) -> None:
        with T.serial(0, self.depth // self.lanes) as chunk, vector(self.lanes) as lane:
            emit(chunk * self.lanes + lane)


def _sum(depth: int, isa: VectorIsa, term: Any) -> Expr:
    """Sum of term(i) over a row: a vector of partial sums, then its lanes in order."""
    columns = _Columns(depth, isa)
    partial, total = local(columns.lanes), local(1)
    fill(partial, 0, columns.lanes, columns.lanes, 0.0)
    with T.serial(0, depth // columns.lanes) as chunk, vector(columns.lanes) as lane:
        T.buffer_store(partial, partial[lane] + term(chunk * columns.lanes + lane), [lane])
    T.buffer_store(total, T.float32(0.0), [0])
    with T.serial(0, columns.lanes) as lane:
        T.buffer_store(total, total[0] + partial[lane], [0])
    return total[0]


def _inverse_root(total: Expr, depth: int, eps: float) -> Expr:
    return T.Bind(T.float32(1.0) / T.sqrt(total * T.float32(1.0 / depth) + T.float32(eps)))


def _scaled(value: Expr, weight: Buffer, i: Expr, weighted: bool) -> Expr:
    return value * weight[i] if weighted else value
