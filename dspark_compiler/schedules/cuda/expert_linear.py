"""Each row through its own expert's weight: a warp for a few features of a row, its lanes along K.

Weights lie as they are given, [E,N,K], and are read 16 bytes at a time; the few rows of a decode go to experts of their
own, so that each weight is needed once anyway.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import WARP, launch, registers
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, vector, when, widest_vector

_WARPS, _FEATURES, _LANES = 4, 4, 8  # warps of a block; features of a warp; elements of an access


def expert_linear(
    name: str,
    rows: int,
    experts: int,
    features: int,
    depth: int,
    *,
    weight_dtype: str,
    in_dtype: str = "float32",
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """y[r] = x[r] @ W[expert[r]].T; arguments x [R,K], W [E,N,K], expert int64 [R], y [R,N]; K sums in float32."""
    lanes = widest_vector(depth, _LANES)
    steps = -(-depth // (WARP * lanes))

    def body(x: Buffer, w: Buffer, expert: Buffer, y: Buffer) -> None:
        with launch((-(-features // (_WARPS * _FEATURES)), rows), _WARPS * WARP) as (block, row, thread):
            lane = T.Bind(thread % WARP)
            first = T.Bind((block * _WARPS + thread // WARP) * _FEATURES)
            own = T.Bind(T.cast(expert[row], "int32"))
            sums, values = registers(_FEATURES), registers(lanes)
            weights = registers((_FEATURES, lanes), weight_dtype)
            for n in range(_FEATURES):
                T.buffer_store(sums, T.float32(0.0), [n])
            with T.serial(0, steps) as step:
                k = T.Bind((step * WARP + lane) * lanes)
                with when(k < depth):
                    for n in range(_FEATURES):
                        feature = T.min(first + n, features - 1)
                        with vector(lanes) as i:
                            T.buffer_store(weights, w[own, feature, k + i], [n, i])
                    for part in range(0, lanes, 4):
                        with vector(min(lanes, 4)) as i:
                            T.buffer_store(values, T.cast(x[row, k + part + i], "float32"), [part + i])
                    for i in range(lanes):
                        for n in range(_FEATURES):
                            T.buffer_store(sums, sums[n] + values[i] * T.cast(weights[n, i], "float32"), [n])
            for n in range(_FEATURES):
                total = reduce_float(sums[n])
                with when(T.And(lane == 0, first + n < features)):
                    T.buffer_store(y, T.cast(total, out_dtype), [row, first + n])

    args = [
        Arg("x", (rows, depth), in_dtype),
        Arg("w", (experts, features, depth), weight_dtype),
        Arg("expert", (rows,), "int64"),
        Arg("y", (rows, features), out_dtype),
    ]
    return kernel(name, args, body)
