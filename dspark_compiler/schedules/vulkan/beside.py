"""Rows of several tensors side by side, awaited and handed on: between layers nothing stands behind a barrier."""

from collections.abc import Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, publish
from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

VECTOR = 4  # numbers of a row that a thread takes


def beside(name: str, rows: int, columns: Sequence[int]) -> tvm.tirx.PrimFunc:
    """Kernel for y [rows, K] = x.0 [rows, columns[0]], x.1, … side by side, float32; columns are multiples of four."""
    args = [
        *(Arg(f"x{number}", (rows, count)) for number, count in enumerate(columns)),
        Arg("y", (rows, sum(columns))),
    ]

    def body(*buffers: Buffer) -> None:
        *parts, y = buffers

        def copy(row: Expr, piece: Expr) -> None:
            column, start = T.Bind(piece * VECTOR), 0
            for part, count in zip(parts, columns, strict=True):
                with when(T.And(column >= start, column < start + count)):
                    found = registers(VECTOR)
                    await_numbers([Ask(found, (0,), part, (row, T.Bind(column - start)), VECTOR)])
                    for i in range(VECTOR):
                        publish(y, [row, column + i], found[i])
                start += count

        each((rows, sum(columns) // VECTOR), copy)

    return hands_on(kernel(name, args, body), args, publishes=["y"], awaits=[arg.name for arg in args[:-1]])
