"""The k largest of each row, as mixture-of-experts routers need them: few columns, small k."""

import tvm
from tvm.tirx.script.builder import ir as T  # noqa: N812

from dspark_compiler.schedules.tir import Arg, Buffer, kernel, local, when


def topk(name: str, rows: int, columns: int, k: int) -> tvm.tirx.PrimFunc:
    """values, indices = the k largest of each row in falling order, the lower index first among equals.

    Arguments x [rows, columns], values [rows, k], indices int64 [rows, k].
    """

    def body(x: Buffer, values: Buffer, indices: Buffer) -> None:
        with T.serial(0, rows) as row:
            taken = local(columns, "int32")
            with T.serial(0, columns) as column:
                T.buffer_store(taken, T.int32(0), [column])
            with T.serial(0, k) as rank:
                best, place = local(1), local(1, "int32")
                T.buffer_store(place, T.int32(-1), [0])
                T.buffer_store(best, T.float32(0.0), [0])
                with T.serial(0, columns) as column:
                    larger = T.Or(place[0] < 0, x[row, column] > best[0])
                    with when(T.And(taken[column] == 0, larger)):
                        T.buffer_store(best, x[row, column], [0])
                        T.buffer_store(place, T.cast(column, "int32"), [0])
                T.buffer_store(taken, T.int32(1), [place[0]])
                T.buffer_store(values, best[0], [row, rank])
                T.buffer_store(indices, T.cast(place[0], "int64"), [row, rank])

    args = [Arg("x", (rows, columns)), Arg("values", (rows, k)), Arg("indices", (rows, k), "int64")]
    return kernel(name, args, body, block=True)
