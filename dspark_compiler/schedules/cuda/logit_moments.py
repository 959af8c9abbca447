"""Mean and variance of each slot's logits over some queries: a thread a slot, the queries one after the other."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.cache_codes import cached
from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.cuda.threads import registers
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, vector, widest_vector


def logit_moments(
    name: str, shape: CacheShape, scale: float, *, heads: int, queries: int, dtype: str, queries_dtype: str = "float32"
) -> tvm.tirx.PrimFunc:
    """Mean and population variance of scale * q.k over the first min(queries, length) queries, for each slot.

    Arguments: queries [1,H,R,D], k_cache [B,G,C,D], [k_scale [B,G,C]], sequence, length int32 [1], out [2,H,C].
    """
    dim, group = shape.head_dim, heads // shape.kv_heads
    lanes = widest_vector(dim, 4)

    def body(q: Buffer, k_cache: Buffer, *rest: Buffer) -> None:
        *scales, sequence, length, out = rest

        def moments(head: Expr, slot: Expr) -> None:
            key = registers(dim)
            for d in range(0, dim, lanes):
                with vector(lanes) as lane:
                    value = k_cache[sequence[0], head // group, slot, d + lane]
                    T.buffer_store(key, cached(value, shape.storage), [d + lane])
            factor = T.float32(scale)
            for each_scale in scales:
                factor = T.Bind(factor * each_scale[sequence[0], head // group, slot])
            mean, spread = variable(T.float32(0.0), "float32"), variable(T.float32(0.0), "float32")
            count = T.Bind(T.max(T.min(length[0], queries), 1))
            with T.serial(0, count) as t:
                sums = registers(lanes)
                for i in range(lanes):
                    T.buffer_store(sums, T.float32(0.0), [i])
                for d in range(0, dim, lanes):
                    query = registers(lanes)
                    with vector(lanes) as lane:
                        T.buffer_store(query, T.cast(q[0, head, t, d + lane], "float32"), [lane])
                    for i in range(lanes):
                        T.buffer_store(sums, sums[i] + query[i] * key[d + i], [i])
                product = sums[0]
                for i in range(1, lanes):
                    product = product + sums[i]
                logit = variable(product * factor, "float32")
                # Both moments so far, after Welford 1962: differences of large sums would lose the small variance.
                off = T.Bind(logit[0] - mean[0])
                T.buffer_store(mean, mean[0] + off / T.cast(t + 1, "float32"), [0])
                T.buffer_store(spread, spread[0] + off * (logit[0] - mean[0]), [0])
            T.buffer_store(out, mean[0], [0, head, slot])
            T.buffer_store(out, spread[0] / T.cast(count, "float32"), [1, head, slot])

        each((heads, shape.slots), moments)

    args = [
        Arg("queries", (1, heads, queries, dim), queries_dtype),
        Arg("k_cache", (*shape.per_slot, dim), shape.stored(dtype)),
        *shape.scale("k_scale"),
        Arg("sequence", (1,), "int32"),
        Arg("length", (1,), "int32"),
        Arg("out", (2, heads, shape.slots)),
    ]
    return kernel(name, args, body)
