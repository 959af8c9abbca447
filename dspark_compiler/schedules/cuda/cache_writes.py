"""Launches that put new keys and values into the cache or its scratch, and the move from scratch to live slots."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.cuda.attention_rows import Problem, Tensors, span_of
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.memory import copy_word, load_int, load_pair, store_word
from dspark_compiler.schedules.cuda.threads import address, launch
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_PLAIN = CacheForm()


class NewSlot:
    """Where a new token's key and value go: to the next live slots, or to scratch where the call has one."""

    def __init__(self, problem: Problem, tensors: Tensors, row: Expr, token: Expr) -> None:
        shape = problem.shape
        self._span, self._token, self._tensors = span_of(problem, tensors, row), token, tensors
        self._kind, slot = ("scratch", token) if shape.scratch else ("cache", self._span.used + token)
        self._slot = T.Bind(slot)
        self.fits = self._span.used + token < self._span.end
        """Whether the token is stored at all: it is one of the call's, and there is room for it."""

    def store(self, name: str, head: Expr, d: Expr, pair: Expr) -> None:
        """Stores elements d and d + 1 of "k" or "v"."""
        store_word(address(self._tensors[f"{name}_{self._kind}"], self._span.sequence, head, self._slot, d), pair)

    def store_position(self, head: Expr, condition: Expr) -> None:
        """Notes the position of a token in a live slot, where slots keep theirs and ``condition`` holds."""
        positions = self._tensors.get("slot_position")
        if positions is not None and self._kind == "cache":
            with when(condition):
                T.buffer_store(positions, self._span.length + self._token, [self._span.sequence, head, self._slot])


def write_new(problem: Problem, tensors: Tensors) -> None:
    """Launches the writing of "k" and "v" [b,G,S,*] to where new tokens go."""
    shape = problem.shape
    with launch((shape.width, shape.kv_heads, shape.rows), _threads(shape)) as (token, head, row, thread):
        await_previous()
        release_next()
        slot = NewSlot(problem, tensors, row, token)

        def put(name: str, d: Expr) -> None:
            new = tensors[name]
            slot.store(name, head, d, load_pair(address(new, row, head, token, d), new.dtype, problem.dtype))

        with when(slot.fits):
            _each_pair(shape, thread, put)
            slot.store_position(head, thread == 0)


def commit_scratch(name: str, shape: AttentionShape, dtype: str, form: CacheForm = _PLAIN) -> tvm.tirx.PrimFunc:
    """Kernel that moves the first accepted[r] scratch rows of each sequence to the slots after its live ones.

    Arguments: k_cache [B,G,C,D], v_cache [B,G,C,Dv], k_scratch [B,G,N,D], v_scratch [B,G,N,Dv] of ``dtype``, length
    and accepted int32 [B], [free int32 [B]], [slot_position int32 [B,G,C]]; the operator's, in its order.
    """
    places = (shape.batch, shape.kv_heads)
    args = [
        Arg("k_cache", (*places, shape.slots, shape.head_dim), dtype),
        Arg("v_cache", (*places, shape.slots, shape.value_dim), dtype),
        Arg("k_scratch", (*places, shape.scratch, shape.head_dim), dtype),
        Arg("v_scratch", (*places, shape.scratch, shape.value_dim), dtype),
        Arg("length", (shape.batch,), "int32"),
        Arg("accepted", (shape.batch,), "int32"),
        *([Arg("free", (shape.batch,), "int32")] if form.free else []),
        *([Arg("slot_position", (*places, shape.slots), "int32")] if form.slot_position else []),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((shape.scratch, shape.kv_heads, shape.batch), _threads(shape)) as (token, head, row, thread):
            await_previous()
            release_next()
            length = T.Bind(load_int(address(of["length"], row)))
            used = T.min(length, shape.slots - load_int(address(of["free"], row))) if form.free else length
            slot = T.Bind(used + token)

            def move(which: str, d: Expr) -> None:
                copy_word(
                    address(of[f"{which}_cache"], row, head, slot, d),
                    address(of[f"{which}_scratch"], row, head, token, d),
                )

            with when(T.And(token < load_int(address(of["accepted"], row)), slot < shape.slots)):
                _each_pair(shape, thread, move)
                if form.slot_position:
                    with when(thread == 0):
                        T.buffer_store(of["slot_position"], length + token, [row, head, slot])

    return kernel(name, args, body)


def _threads(shape: AttentionShape) -> int:
    """A pair of elements a thread, whole warps."""
    return min(256, -(-(shape.head_dim + shape.value_dim) // 64) * 32)


def _each_pair(shape: AttentionShape, thread: Expr, emit: Callable[[str, Expr], None]) -> None:
    """Calls emit("k" or "v", first element) for every pair of a token's key and value."""
    keys, values = shape.head_dim // 2, shape.value_dim // 2
    for start in range(0, keys + values, _threads(shape)):
        pair = T.Bind(start + thread)
        with when(pair < keys):
            emit("k", pair * 2)
        with when(T.And(pair >= keys, pair < keys + values)):
            emit("v", (pair - keys) * 2)
