"""Kernels that read or replace one sequence's part of a state."""

import math
from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, vector, widest_vector

# Elements below which waking the other threads costs more than it saves.
_MIN_PARALLEL = 16384


def read_state(name: str, shape: tuple[int, ...], dtype: str, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """out[0] = state[sequence[0]]; arguments state [B,...], sequence int32 [1], out [1,...]."""

    def body(state: Buffer, sequence: Buffer, out: Buffer) -> None:
        seq = T.Bind(sequence[0])
        _for_part(shape, isa, lambda at: T.buffer_store(out, state[seq, *at], [0, *at]))

    args = [Arg("state", shape, dtype), Arg("sequence", (1,), "int32"), Arg("out", (1, *shape[1:]), dtype)]
    return kernel(name, args, body)


def write_state(name: str, shape: tuple[int, ...], dtype: str, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """state[sequence[0]] = value[0]; arguments state [B,...], value [1,...], sequence int32 [1]."""

    def body(state: Buffer, value: Buffer, sequence: Buffer) -> None:
        seq = T.Bind(sequence[0])
        _for_part(shape, isa, lambda at: T.buffer_store(state, value[0, *at], [seq, *at]))

    args = [Arg("state", shape, dtype), Arg("value", (1, *shape[1:]), dtype), Arg("sequence", (1,), "int32")]
    return kernel(name, args, body)


def read_keys(name: str, shape: CacheShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Keys out of their panels, as float32; arguments k_cache, [k_scale], sequence, out [1,G,C,D]."""
    lanes = widest_vector(shape.head_dim, isa.lanes)

    def body(k_cache: Buffer, *rest: Buffer) -> None:
        sequence, out = rest[-2:]
        seq = T.Bind(sequence[0])
        with _slots(shape, shape.head_dim) as task:
            head, slot = T.Bind(task // shape.slots), T.Bind(task % shape.slots)
            scale = rest[0][seq, head, slot] if shape.storage.scaled else None
            with T.serial(0, shape.head_dim // lanes) as chunk, vector(lanes) as lane:
                d = chunk * lanes + lane
                value = shape.storage.load(k_cache[seq, head, slot // isa.lanes, d, slot % isa.lanes])
                T.buffer_store(out, value if scale is None else value * scale, [0, head, slot, d])

    out = Arg("out", (1, shape.kv_heads, shape.slots, shape.head_dim))
    return kernel(name, [*shape.keys(isa), Arg("sequence", (1,), "int32"), out], body)


def read_values(name: str, shape: CacheShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Values as float32; arguments v_cache, [v_scale], sequence, out [1,G,C,Dv]."""
    lanes = widest_vector(shape.value_dim, isa.lanes)

    def body(v_cache: Buffer, *rest: Buffer) -> None:
        sequence, out = rest[-2:]
        seq = T.Bind(sequence[0])
        with _slots(shape, shape.value_dim) as task:
            head, slot = T.Bind(task // shape.slots), T.Bind(task % shape.slots)
            scale = rest[0][seq, head, slot] if shape.storage.scaled else None
            with T.serial(0, shape.value_dim // lanes) as chunk, vector(lanes) as lane:
                value = shape.storage.load(v_cache[seq, head, slot, chunk * lanes + lane])
                T.buffer_store(out, value if scale is None else value * scale, [0, head, slot, chunk * lanes + lane])

    out = Arg("out", (1, shape.kv_heads, shape.slots, shape.value_dim))
    return kernel(name, [*shape.values(), Arg("sequence", (1,), "int32"), out], body)


def _slots(shape: CacheShape, dim: int) -> Expr:
    """A loop over the slots of all heads."""
    tasks = shape.kv_heads * shape.slots
    return (T.parallel if tasks * dim >= _MIN_PARALLEL else T.serial)(0, tasks)


def _for_part(shape: tuple[int, ...], isa: VectorIsa, emit: Callable[[list[Expr]], None]) -> None:
    """Calls emit with the index of every element of one sequence's part, a vector of the last axis at a time."""
    if len(shape) == 1:
        emit([])
        return
    *outer, last = shape[1:]
    lanes = widest_vector(last, isa.lanes)
    with T.serial(0, math.prod(outer)) as place, T.serial(0, last // lanes) as chunk, vector(lanes) as lane:
        index, rest = [chunk * lanes + lane], place
        for extent in reversed(outer):
            index.insert(0, rest % extent)
            rest = rest // extent
        emit(index)
