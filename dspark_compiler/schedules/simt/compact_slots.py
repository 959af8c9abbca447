"""Moves the slots that stay up to the front, in place: a thread walks through all slots with one element of each.

So nothing is read by one thread that another one writes, and of the slots a thread takes together it has read all
before it writes the first: where they come from lies behind where they go to.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_TOGETHER = 8  # slots


def compact_slots(name: str, shape: CacheShape, *, dtype: str, scored: bool) -> tvm.tirx.PrimFunc:
    """Slot j of one sequence becomes what slot source[j] was; where that is -1 or j nothing moves.

    Arguments: k_cache [B,G,C,D], v_cache [B,G,C,Dv] of ``dtype`` or quantized, slot_position int32 [B,G,C], source
    int32 [1,G,C], sequence int32 [1], [slot_score [B,G,C]], [k_scale, v_scale]. source[j] >= j and rises with j.
    """
    per_slot = [Arg("slot_position", shape.per_slot, "int32"), Arg("source", (1, *shape.per_slot[1:]), "int32")]
    scores = [Arg("slot_score", shape.per_slot)] if scored else []
    stored = shape.stored(dtype)
    args = [
        Arg("k_cache", (*shape.per_slot, shape.head_dim), stored),
        Arg("v_cache", (*shape.per_slot, shape.value_dim), stored),
        *per_slot,
        Arg("sequence", (1,), "int32"),
        *scores,
        *shape.scale("k_scale"),
        *shape.scale("v_scale"),
    ]

    def body(k_cache: Buffer, v_cache: Buffer, slot_position: Buffer, source: Buffer, *rest: Buffer) -> None:
        sequence, *numbers = rest
        for state in (k_cache, v_cache, slot_position, *numbers):
            size = int(state.shape[3]) if len(state.shape) == 4 else 1
            each((shape.kv_heads, size), _Walk(shape, state, source, sequence).move)

    return kernel(name, args, body)


class _Walk:
    """Emits a thread's way through the slots of a head."""

    def __init__(self, shape: CacheShape, state: Buffer, source: Buffer, sequence: Buffer) -> None:
        self._shape, self._state, self._source, self._sequence = shape, state, source, sequence

    def move(self, head: Expr, d: Expr) -> None:
        """Moves element ``d`` of all slots."""
        dtype, slots, sequence = str(self._state.dtype), self._shape.slots, T.Bind(self._sequence[0])
        inner = [d] if len(self._state.shape) == 4 else []
        values, old = registers(_TOGETHER, dtype), registers(_TOGETHER, "int32")
        with T.serial(0, -(-slots // _TOGETHER)) as turn:
            for i in range(_TOGETHER):
                slot = T.Bind(turn * _TOGETHER + i)
                T.buffer_store(old, self._source[0, head, T.min(slot, slots - 1)], [i])
                T.buffer_store(values, self._state[sequence, head, T.max(old[i], 0), *inner], [i])
            for i in range(_TOGETHER):
                slot = T.Bind(turn * _TOGETHER + i)
                with when(T.And(old[i] > slot, slot < slots)):
                    T.buffer_store(self._state, values[i], [sequence, head, slot, *inner])
