"""Small tables that an entry point begins with, each in one launch."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when


def rope_tables(name: str, rows: int, half: int) -> tvm.tirx.PrimFunc:
    """Kernel for cos, sin float32 [rows, 2 half] of positions int64 [rows] times frequencies float32 [half], twice."""

    def body(positions: Buffer, frequencies: Buffer, cos: Buffer, sin: Buffer) -> None:
        def turn(row: Expr, d: Expr) -> None:
            angle = T.Bind(T.cast(positions[row], "float32") * frequencies[d])
            for table, value in ((cos, T.Bind(T.cos(angle))), (sin, T.Bind(T.sin(angle)))):
                for column in (d, d + half):
                    T.buffer_store(table, value, [row, column])

        each((rows, half), turn)

    table = (rows, 2 * half)
    args = [Arg("positions", (rows,), "int64"), Arg("frequencies", (half,)), Arg("cos", table), Arg("sin", table)]
    return kernel(name, args, body)


def columns(name: str, rows: int, count: int, dtype: str) -> tvm.tirx.PrimFunc:
    """Kernel for each column [rows] of x [rows, count] as a tensor of its own."""

    def body(x: Buffer, *outs: Buffer) -> None:
        def copy(row: Expr, column: Expr) -> None:
            for number, out in enumerate(outs):
                with when(column == number):
                    T.buffer_store(out, x[row, number], [row])

        each((rows, count), copy)

    args = [Arg("x", (rows, count), dtype), *(Arg(f"y{number}", (rows,), dtype) for number in range(count))]
    return kernel(name, args, body, block=True)
