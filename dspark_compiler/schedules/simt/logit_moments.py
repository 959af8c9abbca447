"""Mean and variance of each slot's logits over some queries: a team a slot, which goes through them twice."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.group_counts import variable
from dspark_compiler.schedules.simt.slot_keys import SlotKey, key_args
from dspark_compiler.schedules.simt.threads import TEAM, launch
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_THREADS = 128
_TEAMS = _THREADS // TEAM


def logit_moments(
    name: str, shape: CacheShape, scale: float, *, dtype: str, heads: int, queries: int
) -> tvm.tirx.PrimFunc:
    """Mean and population variance of scale * q.k over the first min(queries, length) queries, for each slot.

    Arguments: queries [1,H,R,D], k_cache of ``dtype`` or quantized, [k_scale], sequence, length int32 [1], out [2,H,C].
    """

    def body(q: Buffer, k_cache: Buffer, *rest: Buffer) -> None:
        k_scale, (sequence, length, out) = rest[0] if shape.storage.scaled else None, rest[-3:]
        with launch((-(-shape.slots // _TEAMS), heads), _THREADS) as (group, head, thread):
            slot, lane = T.Bind(group * _TEAMS + thread // TEAM), T.Bind(thread % TEAM)
            count = T.Bind(T.max(T.min(length[0], queries), 1))
            key = SlotKey(shape, lane)
            # Teams behind the last slot take it once more, so that whole groups do the same.
            place = T.Bind(T.min(slot, shape.slots - 1))
            key.load(k_cache, k_scale, (T.Bind(sequence[0]), T.Bind(head // (heads // shape.kv_heads)), place))

            def mean(center: Expr, *, squared: bool) -> Expr:
                total = variable(T.float32(0.0), "float32")
                with T.serial(0, count) as t:
                    off = T.Bind(key.dot(q, (0, head, t)) * T.float32(scale) - center)
                    T.buffer_store(total, total[0] + (off * off if squared else off), [0])
                return T.Bind(total[0] / T.cast(count, "float32"))

            middle = mean(T.float32(0.0), squared=False)
            spread = mean(middle, squared=True)
            with when(T.And(lane == 0, slot < shape.slots)):
                T.buffer_store(out, middle, [0, head, slot])
                T.buffer_store(out, spread, [1, head, slot])

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length")]
    given = Arg("queries", (1, heads, queries, shape.head_dim))
    return kernel(name, [given, *key_args(shape, dtype), *control, Arg("out", (2, heads, shape.slots))], body)
