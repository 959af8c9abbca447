"""What attention the last queries paid each slot: a cluster a query head, whose threads have slots of their own.

Softmax needs a query's maximum over all slots before any weight; the scores of a few queries stay in registers, so
that a key is read once for all of them.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.cuda import functions
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.row_registers import RowRegisters, as_float32, variable
from dspark_compiler.schedules.cuda.threads import barrier, registers, shared
from dspark_compiler.schedules.slot_rows import used_slots
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, vector, when, widest_vector

_HELD = 32  # scores a thread keeps
_NEVER = 2**31 - 1
_LOWEST = -1e29  # a maximum over masked slots alone stays above them: their weights are 0


@made_once
def attention_mass(
    name: str,
    shape: CacheShape,
    scoring: Scoring,
    *,
    heads: int,
    places: int,
    last: int,
    bounded: bool,
    dtype: str,
    ring_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Attention weights of the last min(last, places, length, pending) queries, summed by slot.

    Arguments: ring [B,H,R,D], k_cache [B,G,C,D], [k_scale [B,G,C]], slot_position int32 [B,G,C], sequence, length, free
    int32 [1], [pending if ``bounded``], [sinks [H]], out [1,H,C].
    """
    cluster = RowCluster(shape.slots)
    together = max(1, min(last, places, _HELD // cluster.each))

    def body(ring: Buffer, k_cache: Buffer, *rest: Buffer) -> None:
        scales, rest = (rest[:1], rest[1:]) if shape.storage.scaled else ((), rest)
        slot_position, sequence, length, free, *optional, out = rest
        pending = optional.pop(0)[0] if bounded else T.int32(_NEVER)
        with cluster.launch(heads) as (head, block, thread):
            seq, end, group = T.Bind(sequence[0]), T.Bind(length[0]), T.Bind(head // (heads // shape.kv_heads))
            used = used_slots(end, shape.slots, free[0])
            count = T.Bind(T.min(T.min(end, pending), min(last, places)))
            sink = T.Bind(optional[0][head]) if scoring.sinks else None
            row = RowRegisters(cluster, block, thread)
            queries, mass = shared((together, shape.head_dim)), registers(cluster.each)
            scores = [registers(cluster.each) for _ in range(together)]
            row.each(lambda j, _: T.buffer_store(mass, T.float32(0.0), [j]))
            with T.serial(0, T.max(count + (together - 1), 0) // together) as tile:
                first = T.Bind(tile * together)
                barrier()  # the last tile's queries have been read
                with T.serial(0, -(-together * shape.head_dim // cluster.threads)) as step:
                    i = T.Bind(step * cluster.threads + thread)
                    with when(i < together * shape.head_dim):
                        t, d = T.Bind(i // shape.head_dim), T.Bind(i % shape.head_dim)
                        # Queries past the last repeat it; they are not weighed.
                        place = (end - count + T.min(first + t, count - 1)) % places
                        T.buffer_store(queries, T.cast(ring[seq, head, place, d], "float32"), [t, d])
                barrier()

                def dots(j: Expr, slot: Expr) -> None:
                    for score in scores:
                        T.buffer_store(score, T.float32(0.0), [j])
                    with when(slot < used):
                        _dots(shape, (k_cache, *scales), (seq, group, slot), queries, (scores, j))

                row.each(dots)
                for t, score in enumerate(scores):
                    with when(first + t < count):
                        position = T.Bind(end - count + first + t)

                        def visible(slot: Expr, position: Expr = position) -> Expr:
                            at = slot_position[seq, group, T.min(slot, shape.slots - 1)]
                            seen = T.And(slot < used, at <= position)
                            return T.And(seen, at > position - scoring.window) if scoring.window else seen

                        _weigh(row, scoring, score, visible, sink, mass)

            def put(j: Expr, slot: Expr) -> None:
                with when(slot < shape.slots):
                    T.buffer_store(out, mass[j], [0, head, slot])

            row.each(put)

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length", "free", *(["pending"] if bounded else []))]
    args = [
        Arg("ring", (shape.batch, heads, places, shape.head_dim), ring_dtype),
        Arg("k_cache", (*shape.per_slot, shape.head_dim), shape.stored(dtype)),
        *shape.scale("k_scale"),
        Arg("slot_position", shape.per_slot, "int32"),
        *control,
        *([Arg("sinks", (heads,))] if scoring.sinks else []),
        Arg("out", (1, heads, shape.slots)),
    ]
    return kernel(name, args, body)


def _dots(
    shape: CacheShape,
    stored_as: tuple[Buffer, ...],
    at: tuple[Expr, ...],
    queries: Buffer,
    products: tuple[list[Buffer], Expr],
) -> None:
    """Adds the products of the key at ``at`` with all queries to one element of each one's scores.

    ``stored_as`` are the keys and their scales, if there are any.
    """
    scores, j = products
    keys, *scales = stored_as
    lanes = widest_vector(shape.head_dim, 8)
    with T.serial(0, shape.head_dim // lanes) as chunk:
        stored = registers(lanes, str(keys.dtype))
        with vector(lanes) as lane:
            T.buffer_store(stored, keys[(*at, chunk * lanes + lane)], [lane])
        for i in range(lanes):
            element = T.Bind(shape.storage.load(stored[i]) if scales else T.cast(stored[i], "float32"))
            for t, score in enumerate(scores):
                T.buffer_store(score, score[j] + queries[t, chunk * lanes + i] * element, [j])
    for scale in scales:
        for score in scores:
            T.buffer_store(score, score[j] * scale[at], [j])


def _weigh(row: RowRegisters, scoring: Scoring, score: Buffer, visible: Expr, sink: Expr | None, mass: Buffer) -> None:
    """Adds the softmax of one query's products, over the slots it sees, to ``mass``."""

    def logit(j: Expr, slot: Expr) -> None:
        value = score[j] * T.float32(scoring.scale)
        if scoring.softcap:
            value = functions.tanh(value / T.float32(scoring.softcap)) * T.float32(scoring.softcap)
        T.buffer_store(row.values, T.if_then_else(visible(slot), value, T.float32(float("-inf"))), [j])

    row.each(logit)
    highest = T.Bind(T.max(row.maximum(), T.float32(_LOWEST) if sink is None else sink))
    row.change(lambda value, _: functions.exp(value - highest))
    sum_of_weights, _ = row.above(T.float32(-1.0))
    total = variable(as_float32(sum_of_weights), "float32")
    if sink is not None:
        T.buffer_store(total, total[0] + functions.exp(sink - highest), [0])
    # A query that sees no slot pays nothing.
    inverse = T.Bind(T.Select(total[0] > T.float32(0.0), T.float32(1.0) / total[0], T.float32(0.0)))
    row.each(lambda j, _: T.buffer_store(mass, mass[j] + row.values[j] * inverse, [j]))
