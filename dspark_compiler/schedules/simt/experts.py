"""Mixtures of experts: the router's choice, and each row through its own expert's weight."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.layouts import padded_depth
from dspark_compiler.schedules.simt.stored import elements_at_once, load
from dspark_compiler.schedules.simt.threads import TEAM, launch, registers, team_sum
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 128
_TEAMS = _THREADS // TEAM


@made_once
def topk(name: str, rows: int, columns: int, k: int) -> tvm.tirx.PrimFunc:
    """values, indices = the k largest of each row in falling order, the lower index first among equals.

    Arguments x [rows, columns], values [rows, k], indices int64 [rows, k].
    """

    def body(x: Buffer, values: Buffer, indices: Buffer) -> None:
        def choose(row: Expr) -> None:
            best, place, last = registers(1), registers(1, "int32"), registers(1, "int32")
            T.buffer_store(last, T.int32(-1), [0])
            for rank in range(k):
                T.buffer_store(place, T.int32(-1), [0])
                T.buffer_store(best, T.float32(0.0), [0])
                with T.serial(0, columns) as column:
                    better = T.Or(place[0] < 0, x[row, column] > best[0])
                    if rank:
                        # Behind the one chosen last, in the order of falling values and rising columns.
                        before = values[row, rank - 1]
                        equal = T.And(x[row, column] == before, column > last[0])
                        better = T.And(T.Or(x[row, column] < before, equal), better)
                    with when(better):
                        T.buffer_store(best, x[row, column], [0])
                        T.buffer_store(place, column, [0])
                T.buffer_store(last, place[0], [0])
                T.buffer_store(values, best[0], [row, rank])
                T.buffer_store(indices, T.cast(place[0], "int64"), [row, rank])

        each((rows,), choose)

    args = [Arg("x", (rows, columns)), Arg("values", (rows, k)), Arg("indices", (rows, k), "int64")]
    return kernel(name, args, body, block=True)


@made_once
def expert_linear(
    name: str, rows: int, experts: int, features: int, depth: int, *, weight_dtype: str
) -> tvm.tirx.PrimFunc:
    """y[r] = x[r] @ W[expert[r]].T, a team a feature of a row.

    Arguments: x [R, K], W [E, N, K padded] of ``weight_dtype``, expert int64 [R], y [R, N].
    """
    padded, at_once = padded_depth(depth, weight_dtype), elements_at_once(weight_dtype)
    accesses = padded // at_once

    def body(x: Buffer, w: Buffer, expert: Buffer, y: Buffer) -> None:
        with launch((-(-features // _TEAMS), rows), _THREADS) as (group, row, thread):
            lane, feature = T.Bind(thread % TEAM), T.Bind(group * _TEAMS + thread // TEAM)
            own = T.Bind(T.cast(T.max(T.min(expert[row], T.int64(experts - 1)), T.int64(0)), "int32"))
            line, total, weight = T.Bind(T.min(feature, features - 1)), registers(1), registers(at_once)
            T.buffer_store(total, T.float32(0.0), [0])
            with T.serial(0, -(-accesses // TEAM)) as turn:
                access = T.Bind(turn * TEAM + lane)
                with when(access < accesses):
                    load(weight, 0, w, (own, line, access * at_once), at_once)
                    for e in range(at_once):
                        # Past the end of x the weight is zero: any number does.
                        value = x[row, T.min(access * at_once + e, depth - 1)]
                        T.buffer_store(total, T.fma(weight[e], value, total[0]), [0])
            result = team_sum(total[0])
            with when(T.And(lane == 0, feature < features)):
                T.buffer_store(y, result, [row, feature])

    args = [
        Arg("x", (rows, depth)),
        Arg("w", (experts, features, padded), weight_dtype),
        Arg("expert", (rows,), "int64"),
        Arg("y", (rows, features)),
    ]
    return kernel(name, args, body)
