"""The k largest of each row, as mixture-of-experts routers need them: few columns, small k, a warp a row."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.cuda.threads import WARP, launch, registers
from dspark_compiler.schedules.cuda.warps import reduce_float, reduce_int32
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_NONE = 2**31 - 1


def topk(name: str, rows: int, columns: int, k: int, *, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """values, indices = the k largest of each row in falling order, the lower index first among equals.

    Arguments x [rows, columns], values [rows, k], indices int64 [rows, k].
    """
    each = -(-columns // WARP)

    def body(x: Buffer, values: Buffer, indices: Buffer) -> None:
        with launch((rows,), WARP) as (row, lane):
            held, free = registers(each), registers(each, "int32")
            for j in range(each):
                inside = j * WARP + lane < columns
                T.buffer_store(free, T.cast(inside, "int32"), [j])
                value = T.if_then_else(inside, T.cast(x[row, j * WARP + lane], "float32"), T.float32(0.0))
                T.buffer_store(held, value, [j])
            with T.serial(0, k) as rank:
                best, place = _first_of_highest(held, free, lane, each)
                for j in range(each):
                    with when(place == j * WARP + lane):
                        T.buffer_store(free, T.int32(0), [j])
                with when(lane == 0):
                    T.buffer_store(values, T.cast(best, dtype), [row, rank])
                    T.buffer_store(indices, T.cast(place, "int64"), [row, rank])

    args = [Arg("x", (rows, columns), dtype), Arg("values", (rows, k), dtype), Arg("indices", (rows, k), "int64")]
    return kernel(name, args, body, block=True)


def _first_of_highest(held: Buffer, free: Buffer, lane: Expr, each: int) -> tuple[Expr, Expr]:
    """The highest of a warp's elements that are ``free``, and the lowest column it is in."""
    best = variable(T.float32(float("-inf")), "float32")
    for j in range(each):
        with when(free[j] == 1):
            T.buffer_store(best, T.max(best[0], held[j]), [0])
    highest = reduce_float(best[0], "max")
    place = variable(T.int32(_NONE), "int32")
    for j in range(each - 1, -1, -1):
        with when(T.And(free[j] == 1, held[j] == highest)):
            T.buffer_store(place, j * WARP + lane, [0])
    return highest, reduce_int32(place[0], "min")
