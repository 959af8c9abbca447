"""Norms of few rows that products of few rows hand on: awaited, and awaited in turn."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt import norm
from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, publish
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS
from dspark_compiler.schedules.simt.threads import group_sum, launch, registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_THREADS = 256
_MOST_HELD = 32  # numbers that a thread awaits together


def rms_norm(name: str, rows: int, depth: int, eps: float, *, weighted: bool = True) -> tvm.tirx.PrimFunc:
    """See simt's."""
    held = -(-depth // _THREADS)
    if rows > MOST_ROWS or held > _MOST_HELD:
        return norm.rms_norm(name, rows, depth, eps, weighted=weighted)

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        with launch((rows,), _THREADS) as (row, thread):
            numbers, squares = registers(held), registers(1)
            columns = [T.Bind(turn * _THREADS + thread) for turn in range(held)]
            last = [T.Bind(T.min(column, depth - 1)) for column in columns]
            await_numbers([Ask(numbers, (turn,), x, (row, column)) for turn, column in enumerate(last)])
            T.buffer_store(squares, T.float32(0.0), [0])
            for turn, column in enumerate(columns):
                with when(column < depth):
                    T.buffer_store(squares, squares[0] + numbers[turn] * numbers[turn], [0])
            mean = group_sum(squares[0], thread, _THREADS) * T.float32(1.0 / depth)
            inverse = T.Bind(T.float32(1.0) / T.sqrt(mean + T.float32(eps)))
            for turn, column in enumerate(columns):
                with when(column < depth):
                    publish(y, [row, column], _scaled(numbers[turn] * inverse, rest[0] if weighted else None, column))

    args = [Arg("x", (rows, depth)), *([Arg("weight", (depth,))] if weighted else []), Arg("y", (rows, depth))]
    return hands_on(kernel(name, args, body, block=len(args) == 2), args, publishes=["y"], awaits=["x"])


def _scaled(value: Expr, weight: Buffer | None, column: Expr) -> Expr:
    return value if weight is None else value * weight[column]
