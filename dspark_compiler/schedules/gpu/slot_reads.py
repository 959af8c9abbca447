"""Kernels that read or replace one sequence's part of a state."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import Storage
from dspark_compiler.schedules.gpu.flat import Each
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel

# An element of a cache as float32, without its row's scale.
Load = Callable[[Expr, Storage], Expr]


def read_state(name: str, shape: tuple[int, ...], dtype: str, *, each: Each) -> tvm.tirx.PrimFunc:
    """out[0] = state[sequence[0]]; arguments state [B,...], sequence int32 [1], out [1,...]."""

    def body(state: Buffer, sequence: Buffer, out: Buffer) -> None:
        def copy(row: Expr, *at: Expr) -> None:
            T.buffer_store(out, state[(sequence[0], *at)], [row, *at])

        each((1, *shape[1:]), copy)

    args = [Arg("state", shape, dtype), Arg("sequence", (1,), "int32"), Arg("out", (1, *shape[1:]), dtype)]
    return kernel(name, args, body)


def write_state(name: str, shape: tuple[int, ...], dtype: str, *, each: Each) -> tvm.tirx.PrimFunc:
    """state[sequence[0]] = value[0]; arguments state [B,...], value [1,...], sequence int32 [1]."""

    def body(state: Buffer, value: Buffer, sequence: Buffer) -> None:
        def copy(row: Expr, *at: Expr) -> None:
            T.buffer_store(state, value[(row, *at)], [sequence[0], *at])

        each((1, *shape[1:]), copy)

    args = [Arg("state", shape, dtype), Arg("value", (1, *shape[1:]), dtype), Arg("sequence", (1,), "int32")]
    return kernel(name, args, body)


def read_rows(name: str, shape: CacheShape, dtype: str, *, each: Each, load: Load) -> tvm.tirx.PrimFunc:
    """One sequence's keys or values as float32, those that ``shape.head_dim`` is the size of.

    Arguments: cache [B,G,C,D] of ``dtype`` or quantized, [scales [B,G,C]], sequence int32 [1], out [1,G,C,D].
    """

    def body(cache: Buffer, *rest: Buffer) -> None:
        *scales, sequence, out = rest

        def copy(row: Expr, head: Expr, slot: Expr, d: Expr) -> None:
            value = load(cache[sequence[0], head, slot, d], shape.storage)
            for scale in scales:
                value = value * scale[sequence[0], head, slot]
            T.buffer_store(out, value, [row, head, slot, d])

        each((1, *shape.per_slot[1:], shape.head_dim), copy)

    args = [
        Arg("cache", (*shape.per_slot, shape.head_dim), shape.stored(dtype)),
        *shape.scale("scale"),
        Arg("sequence", (1,), "int32"),
        Arg("out", (1, *shape.per_slot[1:], shape.head_dim)),
    ]
    return kernel(name, args, body)
