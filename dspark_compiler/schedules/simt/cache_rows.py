"""Slots of a cache in an attention call: which a token sees, and how new keys and values get there.

The query rows of a key/value head are numbered token by token: row m is token m // group, query head m % group of the
head's ``group``. Virtual slots count the live slots first and the scratch rows behind them: slot s is live where
s < used, scratch row s - used from there on. A token's own slot is used + its number either way.
"""

from dataclasses import dataclass, field

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.stored import cached, copy_line, narrow
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when


@dataclass(frozen=True)
class Problem:
    """An attention call as kernels see it; ``dtype`` is what keys and values are stored in."""

    shape: AttentionShape
    scoring: Scoring
    form: CacheForm
    dtype: str
    awaits: bool = False  # whether the projection may be yet to come, and "out" is waited for
    causal: bool = True  # whether a token sees no new token behind it

    @property
    def rows(self) -> int:
        """Query rows of a key/value head."""
        return self.shape.width * self.shape.group

    def wide(self, element: Expr) -> Expr:
        """An element of a key or value as float32, without its slot's scale."""
        return cached(element, self.form.storage, self.dtype)

    @property
    def slots(self) -> int:
        """Virtual slots a sequence can have."""
        return self.shape.slots + self.shape.scratch


@dataclass(frozen=True)
class Tensors:
    """Buffers of a call by the operator's names."""

    of: dict[str, Buffer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Buffer:
        return self.of[name]

    def get(self, name: str) -> Buffer | None:
        """The buffer, None if the call has none of that name."""
        return self.of.get(name)


@dataclass(frozen=True)
class Span:
    """The virtual slots of one sequence, int32 expressions."""

    sequence: Expr  # row of the cache
    used: Expr  # live slots before the call
    length: Expr  # confirmed tokens
    end: Expr  # one past the last slot that anyone may see


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


class NewSlot:
    """Where a new token's key and value go: to the next live slots, or to scratch where the call has one."""

    def __init__(self, problem: Problem, tensors: Tensors, row: Expr, token: Expr) -> None:
        self._problem, self._tensors, self._token = problem, tensors, token
        self._span = span_of(problem, tensors, row)
        self._kind = "scratch" if problem.shape.scratch else "cache"
        self._slot = T.Bind(token if problem.shape.scratch else self._span.used + token)
        self.fits = self._span.used + token < self._span.end
        """Whether the token is stored at all: it is one of the call's, and there is room for it."""

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

    def store_position(self, head: Expr, condition: Expr) -> None:
        """Notes the position of a token in a live slot, where slots keep theirs and ``condition`` holds."""
        positions = self._tensors.get("slot_position")
        if positions is not None and self._kind == "cache":
            with when(condition):
                T.buffer_store(positions, self._span.length + self._token, [self._span.sequence, head, self._slot])


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


def cache_args(shape: AttentionShape, dtype: str) -> list[Arg]:
    """Live slots."""
    places = (shape.batch, shape.kv_heads, shape.slots)
    return [Arg("k_cache", (*places, shape.head_dim), dtype), Arg("v_cache", (*places, shape.value_dim), dtype)]


def scratch_args(shape: AttentionShape, dtype: str) -> list[Arg]:
    """What a verify writes; nothing where new tokens go to live slots."""
    if not shape.scratch:
        return []
    places = (shape.batch, shape.kv_heads, shape.scratch)
    return [Arg("k_scratch", (*places, shape.head_dim), dtype), Arg("v_scratch", (*places, shape.value_dim), dtype)]


def form_args(shape: AttentionShape, form: CacheForm, rows: int) -> list[Arg]:
    """What a cache has besides keys and values: [free], [slot_position], [k_scale, v_scale and those of scratch]."""
    places = (shape.batch, shape.kv_heads)
    slots = {"cache": shape.slots} | ({"scratch": shape.scratch} if shape.scratch else {})
    return [
        *([Arg("free", (rows,), "int32")] if form.free else []),
        *([Arg("slot_position", (*places, shape.slots), "int32")] if form.slot_position else []),
        *(
            Arg(scale_name(name, place), (*places, count))
            for place, count in slots.items()
            for name in "kv"
            if form.storage.scaled
        ),
    ]


def scale_name(name: str, place: str) -> str:
    """The tensor of the scales of "k" or "v" in the "cache" or in "scratch"."""
    return f"{name}_scale" if place == "cache" else f"{name}_scratch_scale"
