"""Moves the slots that stay up to the front, in place."""

from collections.abc import Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, vector, when, widest_vector


def compact_slots(name: str, shape: CacheShape, isa: VectorIsa, *, scored: bool) -> tvm.tirx.PrimFunc:
    """Slot j of one sequence becomes what slot source[j] was; where that is -1 or j nothing moves.

    Arguments: k_cache, v_cache, slot_position int32 [B,G,C], source int32 [1,G,C], sequence int32 [1], [slot_score
    [B,G,C]], [k_scale, v_scale]. source[j] >= j and rises with j, so that nothing is overwritten before it has moved.
    """

    def body(k_cache: Buffer, v_cache: Buffer, slot_position: Buffer, source: Buffer, *rest: Buffer) -> None:
        sequence, *extra = rest
        seq = T.Bind(sequence[0])
        # Keys by one task and everything else by another: they are of about the same size.
        with T.parallel(0, shape.kv_heads * 2) as task:
            head = T.Bind(task // 2)
            with T.If(task % 2 == 0):
                with T.Then():
                    _move_keys(shape, isa, k_cache, source, (seq, head))
                with T.Else():
                    _move_values(shape, isa, v_cache, [slot_position, *extra], source, (seq, head))

    per_slot = [Arg("slot_position", shape.per_slot, "int32"), Arg("source", (1, *shape.per_slot[1:]), "int32")]
    scores = [Arg("slot_score", shape.per_slot)] if scored else []
    (k_cache, *k_scale), (v_cache, *v_scale) = shape.keys(isa), shape.values()
    args = [k_cache, v_cache, *per_slot, Arg("sequence", (1,), "int32"), *scores, *k_scale, *v_scale]
    return kernel(name, args, body)


def _move_keys(shape: CacheShape, isa: VectorIsa, k_cache: Buffer, source: Buffer, part: tuple[Expr, Expr]) -> None:
    with T.serial(0, shape.slots) as slot:
        old = T.Bind(source[0, part[1], slot])
        with when(old > slot), T.serial(0, shape.head_dim) as d:
            value = k_cache[*part, old // isa.lanes, d, old % isa.lanes]
            T.buffer_store(k_cache, value, [*part, slot // isa.lanes, d, slot % isa.lanes])


def _move_values(
    shape: CacheShape,
    isa: VectorIsa,
    v_cache: Buffer,
    numbers: Sequence[Buffer],
    source: Buffer,
    part: tuple[Expr, Expr],
) -> None:
    lanes = widest_vector(shape.value_dim, isa.lanes)
    with T.serial(0, shape.slots) as slot:
        old = T.Bind(source[0, part[1], slot])
        with when(old > slot):
            with T.serial(0, shape.value_dim // lanes) as chunk, vector(lanes) as lane:
                d = chunk * lanes + lane
                T.buffer_store(v_cache, v_cache[*part, old, d], [*part, slot, d])
            for state in numbers:
                T.buffer_store(state, state[*part, old], [*part, slot])
