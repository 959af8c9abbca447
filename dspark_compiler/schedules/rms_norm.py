"""Root-mean-square normalisation on the CPU, a row a task."""

import tvm
from tvm.tirx.script.builder import ir as T  # noqa: N812

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, fill, kernel, local, vector, widest_vector

_MIN_PARALLEL = 8192  # elements below which waking threads costs more than it saves


def rms_norm(
    name: str, rows: int, depth: int, eps: float, isa: VectorIsa, *, weighted: bool = True
) -> tvm.tirx.PrimFunc:
    """y = x / sqrt(mean(x^2) + eps) * weight; arguments x [rows, depth], [weight [depth]], y."""
    lanes = widest_vector(depth, isa.lanes)

    def body(x: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        loop = T.parallel if rows > 1 and rows * depth >= _MIN_PARALLEL else T.serial
        with loop(0, rows) as row:
            squares, total = local(lanes), local(1)
            fill(squares, 0, lanes, lanes, 0.0)
            with T.serial(0, depth // lanes) as chunk, vector(lanes) as lane:
                value = x[row, chunk * lanes + lane]
                T.buffer_store(squares, squares[lane] + value * value, [lane])
            T.buffer_store(total, T.float32(0.0), [0])
            with T.serial(0, lanes) as lane:
                T.buffer_store(total, total[0] + squares[lane], [0])
            inverse = T.Bind(T.float32(1.0) / T.sqrt(total[0] * T.float32(1.0 / depth) + T.float32(eps)))
            with T.serial(0, depth // lanes) as chunk, vector(lanes) as lane:
                index = chunk * lanes + lane
                value = x[row, index] * inverse
                T.buffer_store(y, value * rest[0][index] if weighted else value, [row, index])

    args = [Arg("x", (rows, depth)), *([Arg("weight", (depth,))] if weighted else []), Arg("y", (rows, depth))]
    return kernel(name, args, body)
