"""Attention over cache slots on the CPU: blocks of slots, running softmax, grouped queries.

Cache layout, for a sequence and a key/value head:
- keys [C/L, D, L], panels of L slots (L one vector), so that scores are L-wide multiply-adds without a horizontal sum;
- values [C, D], so that the weighted sum is D-wide multiply-adds.

Running softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867) as FlashAttention tiles it (arXiv 2205.14135). Blocks
start at multiples of their size whatever the number of query rows, a row's sums run over slots in order, and a slot
masked for a row adds an exact zero. So a token's output is bit for bit the same from decode, verify or a prefill chunk.
Where the cache is quantized, tokens of the same call are read as they are stored, which keeps that true.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import cache_writes
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring, key_cache_shape
from dspark_compiler.schedules.attention_tile import Operands, Tile, TileEmitter, tile_height
from dspark_compiler.schedules.cache_writes import Places, used_slots
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once

_PLAIN = CacheForm()


@made_once
def append_attention(
    name: str, shape: AttentionShape, scoring: Scoring, isa: VectorIsa, form: CacheForm = _PLAIN
) -> tvm.tirx.PrimFunc:
    """Writes the new keys and values into live slots, then attends to live slots only.

    Arguments: the operator's tensors in its order, those that are given, then out.
    """
    args = [
        *_inputs(shape),
        *_cache(shape, isa, form),
        *_control(shape, "sequence", "length", "count"),
        *_sinks(shape, scoring),
        *_slots(shape, form),
        _out(shape),
    ]

    def body(*buffers: Buffer) -> None:
        of = _named(args, buffers)
        sequence, length, count, free = of["sequence"], of["length"], of["count"], of.get("free")
        cache = _live(of)
        operands = Operands(of["q"], cache, None, of.get("sinks"), of["out"])
        cache_writes.append(shape, isa, form.storage, Places(of["k"], of["v"]), cache, (sequence, length, count, free))
        with _tiles(shape, isa) as (row, head, first, height):
            seq = T.Bind(sequence[row])
            used = used_slots(shape, length, free, row)
            # Rows past `count` are padding; they stay within the cache so that no slot out of bounds is read.
            end = T.Bind(T.max(T.min(used + T.max(count[row], 1), shape.slots), 1))
            tile = Tile(row, seq, head, first, height, used, length[row], end)
            TileEmitter(shape, scoring, isa, form, operands, tile).emit()

    return kernel(name, args, body)


@made_once
def scratch_attention(
    name: str, shape: AttentionShape, scoring: Scoring, isa: VectorIsa, form: CacheForm = _PLAIN
) -> tvm.tirx.PrimFunc:
    """Copies the new keys and values to scratch, then attends to live slots and the new tokens; live slots unchanged.

    Arguments: the operator's tensors in its order, those that are given, then out.
    """
    args = [
        *_inputs(shape),
        *_cache(shape, isa, form),
        *_scratch(shape, form),
        *_control(shape, "length"),
        *_sinks(shape, scoring),
        *_slots(shape, form),
        *_scratch_scales(shape, form),
        _out(shape),
    ]

    def body(*buffers: Buffer) -> None:
        of = _named(args, buffers)
        length, new, scratch = of["length"], Places(of["k"], of["v"]), _unconfirmed(of)
        # What will be stored is what a token must see, now as later.
        fresh = scratch if form.storage.scaled else new
        operands = Operands(of["q"], _live(of), fresh, of.get("sinks"), of["out"])
        cache_writes.copy_to_scratch(shape, isa, form.storage, new, scratch)
        with _tiles(shape, isa) as (row, head, first, height):
            used = used_slots(shape, length, of.get("free"), row)
            end = T.Bind(used + shape.width)
            tile = Tile(row, row, head, first, height, used, length[row], end)
            TileEmitter(shape, scoring, isa, form, operands, tile).emit()

    return kernel(name, args, body)


@made_once
def commit_scratch(name: str, shape: AttentionShape, isa: VectorIsa, form: CacheForm = _PLAIN) -> tvm.tirx.PrimFunc:
    """Moves the first accepted[r] scratch rows of each sequence to the slots after its live ones.

    Arguments: the operator's tensors in its order, those that are given.
    """
    args = [
        *_cache(shape, isa, form),
        *_scratch(shape, form),
        *_control(shape, "length", "accepted"),
        *_slots(shape, form),
        *_scratch_scales(shape, form),
    ]

    def body(*buffers: Buffer) -> None:
        of = _named(args, buffers)
        control = (of["length"], of["accepted"], of.get("free"))
        cache_writes.commit(shape, isa, _unconfirmed(of), _live(of), control)

    return kernel(name, args, body)


@contextmanager
def _tiles(shape: AttentionShape, isa: VectorIsa) -> Iterator[tuple[Expr, Expr, Expr, int]]:
    """Parallel loop over (row, query head, tile of query tokens); yields their indices and the tile's height."""
    height = tile_height(shape, isa)
    tiles = shape.width // height
    with T.parallel(0, shape.rows * shape.heads * tiles) as task:
        # Late tiles see more slots; with heads outermost, each thread gets early and late ones.
        head = T.Bind(task // (shape.rows * tiles))
        row = T.Bind(task // tiles % shape.rows)
        yield row, head, task % tiles * height, height


def _inputs(shape: AttentionShape) -> list[Arg]:
    return [
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim)),
        Arg("k", (shape.rows, shape.kv_heads, shape.width, shape.head_dim)),
        Arg("v", (shape.rows, shape.kv_heads, shape.width, shape.value_dim)),
    ]


def _cache(shape: AttentionShape, isa: VectorIsa, form: CacheForm) -> list[Arg]:
    keys = key_cache_shape(shape.batch, shape.kv_heads, shape.slots, shape.head_dim, isa)
    values = (shape.batch, shape.kv_heads, shape.slots, shape.value_dim)
    return [Arg("k_cache", keys, form.storage.dtype), Arg("v_cache", values, form.storage.dtype)]


def _scratch(shape: AttentionShape, form: CacheForm) -> list[Arg]:
    rows = (shape.batch, shape.kv_heads, shape.scratch)
    return [
        Arg("k_scratch", (*rows, shape.head_dim), form.storage.dtype),
        Arg("v_scratch", (*rows, shape.value_dim), form.storage.dtype),
    ]


def _control(shape: AttentionShape, *names: str) -> list[Arg]:
    return [Arg(name, (shape.rows,), "int32") for name in names]


def _sinks(shape: AttentionShape, scoring: Scoring) -> list[Arg]:
    return [Arg("sinks", (shape.heads,))] if scoring.sinks else []


def _slots(shape: AttentionShape, form: CacheForm) -> list[Arg]:
    """What the cache has besides keys and values."""
    slots = (shape.batch, shape.kv_heads, shape.slots)
    free = _control(shape, "free") if form.free else []
    positions = [Arg("slot_position", slots, "int32")] if form.slot_position else []
    scales = [Arg("k_scale", slots), Arg("v_scale", slots)] if form.storage.scaled else []
    return [*free, *positions, *scales]


def _scratch_scales(shape: AttentionShape, form: CacheForm) -> list[Arg]:
    rows = (shape.batch, shape.kv_heads, shape.scratch)
    return [Arg("k_scratch_scale", rows), Arg("v_scratch_scale", rows)] if form.storage.scaled else []


def _out(shape: AttentionShape) -> Arg:
    return Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim))


def _named(args: list[Arg], buffers: tuple[Buffer, ...]) -> dict[str, Buffer]:
    return dict(zip((arg.name for arg in args), buffers, strict=True))


def _live(of: dict[str, Buffer]) -> Places:
    """The live slots, out of a kernel's buffers by name."""
    return Places(of["k_cache"], of["v_cache"], of.get("k_scale"), of.get("v_scale"), of.get("slot_position"))


def _unconfirmed(of: dict[str, Buffer]) -> Places:
    """The scratch rows, out of a kernel's buffers by name."""
    return Places(of["k_scratch"], of["v_scratch"], of.get("k_scratch_scale"), of.get("v_scratch_scale"))
