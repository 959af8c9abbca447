"""Slots of a cache in an attention call: which a token sees, and how new keys and values get there."""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.gpu import attention_call
from dspark_compiler.schedules.gpu.attention_call import Span, Tensors
from dspark_compiler.schedules.gpu.cache_args import cache_args, form_args, scale_name, scratch_args
from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.stored import cached, copy_line, narrow
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

__all__ = [
    "NewSlot",
    "Problem",
    "Span",
    "Tensors",
    "cache_args",
    "commit_scratch",
    "form_args",
    "scale_name",
    "scratch_args",
    "span_of",
    "write_new",
]


@dataclass(frozen=True)
class Problem(attention_call.Problem):
    """An attention call; ``dtype`` is what keys and values are stored in."""

    awaits: bool = False  # whether the projection may be yet to come, and "out" is waited for
    causal: bool = True  # whether a token sees no new token behind it

    def wide(self, element: Expr) -> Expr:
        """An element of a key or value as float32, without its slot's scale."""
        return cached(element, self.form.storage, self.dtype)


def span_of(problem: Problem, tensors: Tensors, row: Expr) -> Span:
    """The slots of the call's row ``row``; tokens past the cache's end have none."""
    shape = problem.shape
    length = T.Bind(tensors["length"][row])
    used = used_slots(tensors, shape, row, length)
    if shape.scratch:
        return Span(row, used, length, T.Bind(used + shape.width))
    count = T.Bind(tensors["count"][row])
    end = T.Bind(T.min(used + T.min(count, shape.width), shape.slots))
    return Span(T.Bind(tensors["sequence"][row]), used, length, end)


def used_slots(tensors: Tensors, shape: AttentionShape, row: Expr, length: Expr) -> Expr:
    """Live slots of a row's sequence; without ``free`` each token has one."""
    free = tensors.get("free")
    return length if free is None else T.Bind(T.min(length, shape.slots - free[row]))


class NewSlot(attention_call.NewSlot):
    """See there; here elements are stored one by one, or a line of them at once."""

    def __init__(self, problem: Problem, tensors: Tensors, row: Expr, token: Expr) -> None:
        super().__init__(problem, tensors, span_of(problem, tensors, row), token)

    def store(self, name: str, head: Expr, d: Expr, value: Expr) -> None:
        """Stores element d of "k" or "v"."""
        self.store_as_is(name, head, d, narrow(value, self._problem.dtype))

    def copy(self, name: str, head: Expr, d: Expr, source: Buffer, line: int) -> None:
        """Stores elements of "k" or "v" from d on: a line of ``source``, which has the cache's type."""
        target = self._tensors[f"{name}_{self._kind}"]
        copy_line(target, (self._span.sequence, head, self._slot, d), source, line)

    def store_as_is(self, name: str, head: Expr, d: Expr, element: Expr) -> None:
        """The same of what has the cache's type."""
        target = self._tensors[f"{name}_{self._kind}"]
        T.buffer_store(target, element, [self._span.sequence, head, self._slot, d])

    def store_scale(self, name: str, head: Expr, scale: Expr) -> None:
        """Stores what the elements of "k" or "v" are multiples of."""
        target = self._tensors[scale_name(name, self._kind)]
        T.buffer_store(target, scale, [self._span.sequence, head, self._slot])


def write_new(problem: Problem, tensors: Tensors) -> None:
    """Launches the writing of "k" and "v" [b,G,S,*] to where new tokens go."""
    shape = problem.shape

    def put(row: Expr, head: Expr, token: Expr, d: Expr) -> None:
        slot = NewSlot(problem, tensors, row, token)
        with when(slot.fits):
            for name, dim in (("k", shape.head_dim), ("v", shape.value_dim)):
                with when(d < dim):
                    slot.store(name, head, d, tensors[name][row, head, token, d])
            slot.store_position(head, d == 0)

    each((shape.rows, shape.kv_heads, shape.width, max(shape.head_dim, shape.value_dim)), put)


@made_once
def commit_scratch(name: str, shape: AttentionShape, dtype: str, form: CacheForm) -> tvm.tirx.PrimFunc:
    """Kernel that moves the first accepted[r] scratch rows of each sequence to the slots after its live ones.

    Arguments: k_cache [B,G,C,D], v_cache [B,G,C,Dv], k_scratch [B,G,N,D], v_scratch [B,G,N,Dv] of ``dtype``, length
    and accepted int32 [B], [free int32 [B]], [slot_position int32 [B,G,C]], [scales]; the operator's, in its order.
    """
    args = [
        *cache_args(shape, dtype),
        *scratch_args(shape, dtype),
        Arg("length", (shape.batch,), "int32"),
        Arg("accepted", (shape.batch,), "int32"),
        *form_args(shape, form, shape.batch),
    ]

    def body(*buffers: Buffer) -> None:
        of = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))

        def move(row: Expr, head: Expr, token: Expr, d: Expr) -> None:
            length = T.Bind(of["length"][row])
            slot = T.Bind(used_slots(of, shape, row, length) + token)
            with when(T.And(token < of["accepted"][row], slot < shape.slots)):
                for which, dim in (("k", shape.head_dim), ("v", shape.value_dim)):
                    with when(d < dim):
                        T.buffer_store(
                            of[f"{which}_cache"], of[f"{which}_scratch"][row, head, token, d], [row, head, slot, d]
                        )
                with when(d == 0):
                    if form.slot_position:
                        T.buffer_store(of["slot_position"], length + token, [row, head, slot])
                    for which in "kv" if form.storage.scaled else "":
                        scale = of[scale_name(which, "scratch")][row, head, token]
                        T.buffer_store(of[scale_name(which, "cache")], scale, [row, head, slot])

        each((shape.batch, shape.kv_heads, shape.scratch, max(shape.head_dim, shape.value_dim)), move)

    return kernel(name, args, body)
