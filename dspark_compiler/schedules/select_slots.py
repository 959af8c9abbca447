"""Which slots stay: a threshold by binary search over the scores' bits, then one walk in slot order.

The search counts, for each of 32 bits, how many scores lie below a candidate. Its cost does not depend on how many
slots go, it needs no memory besides the scores, and counting is vector work.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_rows import used_slots
from dspark_compiler.schedules.slot_shape import CacheShape, padded_row
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, made_once, vector, when

_NEVER = 2**31 - 1
_LOWEST = -(2**31)


@made_once
def select_slots(name: str, shape: CacheShape, first: int, last: int, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Where the content of each slot lies now that the lowest scores go, older first among equals; -1 behind the kept.

    Arguments: score float32 [1,G,C], slot_position int32 [B,G,C], sequence, length, free, need int32 [1], out int32
    [1,G,C]. Tokens before position ``first`` and the last ``last`` of the sequence go only when nothing else is left.
    """

    def body(score: Buffer, slot_position: Buffer, *rest: Buffer) -> None:
        sequence, length, free, need, out = rest
        used = used_slots(length[0], shape.slots, free[0])
        drop = T.Bind(T.max(used + need[0] - shape.slots, 0))
        with T.parallel(0, shape.kv_heads) as head:
            position = padded_row(slot_position, (sequence[0], head), used, shape.panels(isa) * isa.lanes, isa, 0)
            order = _ranked(shape, isa, (score, head), position, used, (first, length[0] - last))
            bound, ties = _threshold(shape, isa, order, drop)
            _keep(shape, (out, head), order, used, bound, ties)

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length", "free", "need")]
    row = (1, shape.kv_heads, shape.slots)
    args = [Arg("score", row), Arg("slot_position", shape.per_slot, "int32"), *control, Arg("out", row, "int32")]
    return kernel(name, args, body)


def _ranked(
    shape: CacheShape,
    isa: VectorIsa,
    scores: tuple[Buffer, Expr],
    position: Buffer,
    used: Expr,
    free_range: tuple[int, Expr],
) -> Buffer:
    """The scores of a head as integers of the same order, the largest one for protected tokens and unused slots."""
    score, head = scores
    begin, end = free_range
    size = shape.panels(isa) * isa.lanes
    values = padded_row(score, (0, head), used, size, isa, 0.0)
    order = local(size, "int32")
    with T.serial(0, size // isa.lanes) as chunk, vector(isa.lanes) as lane:
        slot = chunk * isa.lanes + lane
        bits = T.reinterpret("int32", values[slot])
        # Negative floats order by falling magnitude; NaN (sign clear) comes above everything else.
        ordered = T.bitwise_xor(bits, T.bitwise_and(bits >> T.int32(31), T.int32(_NEVER)))
        evictable = T.And(slot < used, T.And(position[slot] >= begin, position[slot] < end))
        T.buffer_store(order, T.Select(evictable, ordered, T.int32(_NEVER)), [slot])
    return order


def _threshold(shape: CacheShape, isa: VectorIsa, order: Buffer, drop: Expr) -> tuple[Expr, Buffer]:
    """The ``drop``-th lowest rank, and (in a buffer) how many of the slots with just that rank go."""
    bound, below = local(1, "int32"), local(1, "int32")
    T.buffer_store(bound, T.int32(_LOWEST), [0])
    with T.serial(0, 32) as step:
        # Seen as unsigned numbers from the lowest rank up, this sets one more bit.
        candidate = T.Bind(T.bitwise_xor(bound[0], T.int32(1) << (T.int32(31) - step)))
        _count_below(shape, isa, order, candidate, below)
        with when(below[0] < drop):
            T.buffer_store(bound, candidate, [0])
    rank = T.Bind(bound[0])
    _count_below(shape, isa, order, rank, below)
    T.buffer_store(below, drop - below[0], [0])
    return rank, below


def _count_below(shape: CacheShape, isa: VectorIsa, order: Buffer, rank: Expr, result: Buffer) -> None:
    lanes = isa.lanes
    counts = local(lanes, "int32")
    with vector(lanes) as lane:
        T.buffer_store(counts, T.int32(0), [lane])
    with T.serial(0, shape.panels(isa)) as chunk, vector(lanes) as lane:
        lower = T.Select(order[chunk * lanes + lane] < rank, T.int32(1), T.int32(0))
        T.buffer_store(counts, counts[lane] + lower, [lane])
    T.buffer_store(result, T.int32(0), [0])
    with T.serial(0, lanes) as lane:
        T.buffer_store(result, result[0] + counts[lane], [0])


def _keep(shape: CacheShape, target: tuple[Buffer, Expr], order: Buffer, used: Expr, bound: Expr, ties: Buffer) -> None:
    """Writes the slots above ``bound``, and those at it once ``ties`` of them have gone, then -1."""
    out, head = target
    kept = local(1, "int32")
    T.buffer_store(kept, T.int32(0), [0])
    with T.serial(0, shape.slots) as slot:
        T.buffer_store(out, T.int32(-1), [0, head, slot])
    with T.serial(0, used) as slot:
        tie = T.And(order[slot] == bound, ties[0] > 0)
        with T.If(T.Or(order[slot] < bound, tie)):
            with T.Then(), when(order[slot] == bound):
                T.buffer_store(ties, ties[0] - 1, [0])
            with T.Else():
                T.buffer_store(out, T.cast(slot, "int32"), [0, head, kept[0]])
                T.buffer_store(kept, kept[0] + 1, [0])
