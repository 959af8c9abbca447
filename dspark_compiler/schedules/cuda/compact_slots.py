"""Moves the slots that stay up to the front, in place.

A block takes a stretch of columns through all slots, many slots at a time: it reads what they become, waits for all its
threads, and writes. Content only moves up, so what later slots become is still there.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import barrier, launch, registers
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, vector, when, widest_vector

_THREADS, _TOGETHER = 1024, 4  # slots a thread moves at a time
_LANES, _PIECES = 8, 4  # elements of an access; accesses next to each other that a block takes


def compact_slots(name: str, shape: CacheShape, *, dtype: str, scored: bool) -> tvm.tirx.PrimFunc:
    """Slot j of one sequence becomes what slot source[j] was; where that is -1 or j nothing moves.

    Arguments: k_cache [B,G,C,D], v_cache [B,G,C,Dv], slot_position int32 [B,G,C], source int32 [1,G,C], sequence int32
    [1], [slot_score [B,G,C]], [k_scale, v_scale [B,G,C]]. source[j] >= j and rises with j.
    """

    def body(k_cache: Buffer, v_cache: Buffer, slot_position: Buffer, source: Buffer, *rest: Buffer) -> None:
        sequence, *numbers = rest
        for state in (k_cache, v_cache, slot_position, *numbers):
            _move(shape, state, source, sequence)

    args = [
        Arg("k_cache", (*shape.per_slot, shape.head_dim), shape.stored(dtype)),
        Arg("v_cache", (*shape.per_slot, shape.value_dim), shape.stored(dtype)),
        Arg("slot_position", shape.per_slot, "int32"),
        Arg("source", (1, *shape.per_slot[1:]), "int32"),
        Arg("sequence", (1,), "int32"),
        *([Arg("slot_score", shape.per_slot)] if scored else []),
        *shape.scale("k_scale"),
        *shape.scale("v_scale"),
    ]
    return kernel(name, args, body)


def _move(shape: CacheShape, state: Buffer, source: Buffer, sequence: Buffer) -> None:
    dim = int(state.shape[3]) if len(state.shape) == 4 else 1
    lanes = widest_vector(dim, _LANES)
    pieces = widest_vector(dim // lanes, _PIECES)
    rows = _THREADS // pieces
    with launch((dim // (lanes * pieces), shape.kv_heads), _THREADS) as (part, head, thread):
        column = T.Bind((part * pieces + thread % pieces) * lanes)
        with T.serial(0, -(-shape.slots // (rows * _TOGETHER))) as step:
            held, old = registers((_TOGETHER, lanes), str(state.dtype)), registers(_TOGETHER, "int32")
            first = T.Bind(step * (rows * _TOGETHER) + thread // pieces)
            for j in range(_TOGETHER):
                slot = first + j * rows
                T.buffer_store(old, T.if_then_else(slot < shape.slots, source[0, head, slot], T.int32(-1)), [j])
                with when(old[j] > slot), vector(lanes) as lane:
                    T.buffer_store(held, state[_at(state, sequence[0], head, old[j], column + lane)], [j, lane])
            barrier()
            for j in range(_TOGETHER):
                slot = first + j * rows
                with when(old[j] > slot), vector(lanes) as lane:
                    T.buffer_store(state, held[j, lane], _at(state, sequence[0], head, slot, column + lane))


def _at(state: Buffer, seq: Expr, head: Expr, slot: Expr, column: Expr) -> tuple[Expr, ...]:
    return (seq, head, slot, column) if len(state.shape) == 4 else (seq, head, slot)
