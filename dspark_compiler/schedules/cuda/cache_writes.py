"""Launches that put new keys and values into the cache or its scratch, and the move from scratch to live slots."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.cuda.attention_rows import Problem, span_of
from dspark_compiler.schedules.cuda.cache_args import cache_args, check_heads
from dspark_compiler.schedules.cuda.cache_codes import Pair, store_codes
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.memory import copy_word, load_floats, load_int, load_pair, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, launch, registers
from dspark_compiler.schedules.gpu import attention_call
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.gpu.cache_args import scale_name
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_PLAIN = CacheForm()


class NewSlot(attention_call.NewSlot):
    """See there; here neighbours are stored in words."""

    def __init__(self, problem: Problem, tensors: Tensors, row: Expr, token: Expr) -> None:
        super().__init__(problem, tensors, span_of(problem, tensors, row), token)

    def store(self, name: str, head: Expr, d: Expr, pair: Expr) -> None:
        """Stores elements d and d + 1 of "k" or "v" as they are."""
        store_word(self._place(name, head, d), pair)

    def store_row(self, name: str, head: Expr, values: Buffer, pairs: Sequence[Pair], lane: Expr) -> None:
        """Stores all of a key or value, float32 in the registers of a warp's lanes, if there is room for it."""
        storage = self._problem.form.storage
        places = [self._place(name, head, pair.d) for pair in pairs]
        with when(self.fits):
            if storage.scaled:
                scale = address(self._tensors[scale_name(name, self._kind)], self._span.sequence, head, self._slot)
                store_codes(storage, values, pairs, (places, scale), lane)
                return
            for pair, place in zip(pairs, places, strict=True):
                with when(pair.inside):
                    store_word(place, pack_pair(values[pair.at], values[pair.at + 1], self._problem.dtype))

    def _place(self, name: str, head: Expr, d: Expr) -> Expr:
        return address(self._tensors[f"{name}_{self._kind}"], self._span.sequence, head, self._slot, d)


def write_new(problem: Problem, tensors: Tensors) -> None:
    """Launches the writing of "k" and "v" [b,G,S,*] to where new tokens go."""
    shape, coded = problem.shape, problem.form.storage.scaled
    threads = 2 * WARP if coded else _threads(shape, 2)
    with launch((shape.width, shape.kv_heads, shape.rows), threads) as (token, head, row, thread):
        await_previous()
        release_next()
        slot = NewSlot(problem, tensors, row, token)

        def put(name: str, d: Expr) -> None:
            new = tensors[name]
            slot.store(name, head, d, load_pair(address(new, row, head, token, d), new.dtype, problem.dtype))

        with when(slot.fits):
            slot.store_position(head, thread == 0)
            if not coded:
                _each_word(shape, 2, thread, put)
        for number, (name, dim) in enumerate((("k", shape.head_dim), ("v", shape.value_dim)) if coded else ()):
            with when(thread // WARP == number):
                _write_codes(slot, name, tensors[name], (row, head, token), dim, thread % WARP)


def _write_codes(slot: NewSlot, name: str, new: Buffer, place: tuple[Expr, Expr, Expr], dim: int, lane: Expr) -> None:
    """A warp's work on one key or value."""
    row, head, token = place
    turns = -(-dim // (2 * WARP))
    values = registers(turns * 2)
    pairs = [Pair(d := turn * 2 * WARP + lane * 2, d < dim, turn * 2) for turn in range(turns)]
    for pair in pairs:
        for i in range(2):
            T.buffer_store(values, T.float32(0.0), [pair.at + i])
        with when(pair.inside):
            load_floats(values, pair.at, address(new, row, head, token, pair.d), 2)
    slot.store_row(name, head, values, pairs, lane)


@made_once
def commit_scratch(
    name: str, shape: AttentionShape, dtype: str, form: CacheForm = _PLAIN, layers: int = 1
) -> tvm.tirx.PrimFunc:
    """Kernel that moves the first accepted[r] scratch rows of each sequence to the slots after its live ones.

    Arguments: k_cache [B,G,C,D], v_cache [B,G,C,Dv], k_scratch [B,G,N,D], v_scratch [B,G,N,Dv] of ``dtype`` or
    quantized, length and accepted int32 [B], [free int32 [B]], [slot_position int32 [B,G,C]], [k_scale, v_scale float32
    [B,G,C], k_scratch_scale, v_scratch_scale [B,G,N]]; the operator's, in its order. Those of each of ``layers``.
    """
    check_heads(shape)
    args = cache_args(shape, dtype, form, [Arg(each, (shape.batch,), "int32") for each in ("length", "accepted")])

    def body(*buffers: Buffer) -> None:
        threads = _threads(shape, _per_word(form))
        with launch((shape.scratch, shape.kv_heads, shape.batch * layers), threads) as (token, head, piece, thread):
            await_previous()
            release_next()
            for layer in range(layers):
                own = buffers[layer * len(args) : (layer + 1) * len(args)]
                of = dict(zip((arg.name for arg in args), own, strict=True))
                with when(piece // shape.batch == layer):
                    _commit(shape, form, of, (token, head, piece % shape.batch), thread)

    every = [replace(arg, name=f"{arg.name}_{layer}") for layer in range(layers) for arg in args]
    return kernel(name, every, body)


def _commit(
    shape: AttentionShape, form: CacheForm, of: dict[str, Buffer], place: tuple[Expr, Expr, Expr], thread: Expr
) -> None:
    """Moves a token's key and value of a head, if it was accepted."""
    token, head, row = place
    length = T.Bind(load_int(address(of["length"], row)))
    used = T.min(length, shape.slots - load_int(address(of["free"], row))) if form.free else length
    slot = T.Bind(used + token)

    def move(which: str, d: Expr) -> None:
        copy_word(
            address(of[f"{which}_cache"], row, head, slot, d),
            address(of[f"{which}_scratch"], row, head, token, d),
        )

    with when(T.And(token < load_int(address(of["accepted"], row)), slot < shape.slots)):
        _each_word(shape, _per_word(form), thread, move)
        if form.slot_position:
            with when(thread == 0):
                T.buffer_store(of["slot_position"], length + token, [row, head, slot])
        for number, which in enumerate("kv" if form.storage.scaled else ""):
            with when(thread == number):
                copy_word(
                    address(of[scale_name(which, "cache")], row, head, slot),
                    address(of[scale_name(which, "scratch")], row, head, token),
                )


def _per_word(form: CacheForm) -> int:
    """Stored elements in four bytes."""
    return 4 if form.storage.scaled else 2


def _threads(shape: AttentionShape, per_word: int) -> int:
    """A word a thread, whole warps."""
    return min(256, -(-(shape.head_dim + shape.value_dim) // (per_word * WARP)) * WARP)


def _each_word(shape: AttentionShape, per_word: int, thread: Expr, emit: Callable[[str, Expr], None]) -> None:
    """Calls emit("k" or "v", first element) for every word of so many elements of a token's key and value."""
    keys, values = shape.head_dim // per_word, shape.value_dim // per_word
    for start in range(0, keys + values, _threads(shape, per_word)):
        word = T.Bind(start + thread)
        with when(word < keys):
            emit("k", word * per_word)
        with when(T.And(word >= keys, word < keys + values)):
            emit("v", (word - keys) * per_word)
