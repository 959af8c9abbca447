"""A thin layer over TVM's TIR builder: a kernel is a Python function over buffers, unrolled where Python loops."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar, cast

import tvm
from tvm import DataType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.op import call_llvm_intrin
from tvm.tirx.script.builder import ir as T

Buffer = Any
Expr = Any

# Operator pattern 8 (opaque) keeps Relax from fusing into a hand-written kernel. Rules pass by what is marked as
# scheduled; to find out for themselves that they can do nothing with it takes each of them milliseconds.
OPAQUE = 8
_CACHE_LINE = 64  # bytes
_KEPT = 256  # kernels of a template

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Arg:
    """One buffer argument of a kernel."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


def made_once(template: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """A template of kernels that makes equal ones once: most layers of a model have those of the first."""
    return cast(Callable[_Given, _Made], lru_cache(_KEPT)(template))


def kernel(name: str, args: Sequence[Arg], body: Callable[..., None], *, block: bool = False) -> tvm.tirx.PrimFunc:
    """Builds a PrimFunc; ``body`` gets one buffer an argument and emits the statements.

    ``block`` wraps the statements in a root block: Relax looks for one in functions of a single input.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=block):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE, "tirx.is_scheduled": True})
        buffers = []
        for arg in args:
            handle = T.arg(f"{arg.name}_handle", T.handle())
            buffers.append(T.match_buffer(handle, arg.shape, arg.dtype, align=64))
        with T.sblock("root") if block else nullcontext():
            body(*buffers)
    return builder.get()


def local(shape: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """A buffer private to the iteration it is made in: on the stack under 1 KB, in registers where vectors fit."""
    # In scope "local" TVM would take each from the thread's workspace pool: two calls and a page of its own.
    return T.alloc_buffer(shape if isinstance(shape, tuple) else (shape,), dtype, scope="global")


def int32(value: Expr) -> Expr:
    """A 32-bit integer constant or cast."""
    return T.int32(value) if isinstance(value, int) else T.cast(value, "int32")


@contextmanager
def vector(lanes: int) -> Iterator[Expr]:
    """A loop of ``lanes`` iterations that becomes one vector instruction a statement."""
    with T.vectorized(0, lanes) as lane:
        yield lane


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Runs the statements inside only where ``condition`` holds."""
    with T.If(condition), T.Then():
        yield


def prefetch(buffer: Buffer, start: tuple[Expr, ...], count: int) -> None:
    """Asks for the cache lines of ``count`` elements from ``start`` on, to be read once soon."""
    per_line = _CACHE_LINE // (DataType(buffer.dtype).bits // 8)
    for offset in range(0, count, per_line):
        address = T.address_of(buffer[(*start[:-1], start[-1] + offset)])
        read, keep, data = T.int32(0), T.int32(3), T.int32(1)
        T.evaluate(call_llvm_intrin("void", "llvm.prefetch", address, read, keep, data))


def fill(buffer: Buffer, start: Expr, count: int, lanes: int, value: float) -> None:
    """buffer[start : start+count] = value; count a multiple of lanes."""
    for chunk in range(0, count, lanes):
        with vector(lanes) as lane:
            T.buffer_store(buffer, T.float32(value), [start + chunk + lane])


def widest_vector(extent: int, lanes: int) -> int:
    """The largest power of two up to ``lanes`` that divides ``extent``."""
    while extent % lanes:
        lanes //= 2
    return lanes
