"""Attention over cache slots on the CPU: blocks of slots, running softmax, grouped queries.

Cache layout, for a sequence and a key/value head:
- keys [C/L, D, L], panels of L slots (L one vector), so that scores are L-wide multiply-adds without a horizontal sum;
- values [C, D], so that the weighted sum is D-wide multiply-adds.

Running softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867) as FlashAttention tiles it (arXiv 2205.14135). Blocks
start at multiples of their size whatever the number of query rows, a row's sums run over slots in order, and a slot
masked for a row adds an exact zero. So a token's output is bit for bit the same from decode, verify or a prefill chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import cache_writes
from dspark_compiler.schedules.attention_shape import AttentionShape, Scoring, key_cache_shape
from dspark_compiler.schedules.attention_tile import Operands, Tile, TileEmitter, tile_height
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def append_attention(name: str, shape: AttentionShape, scoring: Scoring, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Writes the new keys and values into live slots, then attends to live slots only.

    Arguments: q, k, v, k_cache, v_cache, sequence, length, count, [sinks], out.
    """

    def body(q: Buffer, k: Buffer, v: Buffer, k_cache: Buffer, v_cache: Buffer, *rest: Buffer) -> None:
        sequence, length, count = rest[:3]
        operands = Operands(q, k_cache, v_cache, None, rest[3] if scoring.sinks else None, rest[-1])
        cache_writes.append(shape, isa, (k, v), (k_cache, v_cache), sequence, length, count)
        with _tiles(shape, isa) as (row, head, first, height):
            seq = T.Bind(sequence[row])
            # Rows past `count` are padding; they stay within the cache so that no slot out of bounds is read.
            end = T.Bind(T.max(T.min(length[row] + T.max(count[row], 1), shape.slots), 1))
            tile = Tile(row, seq, head, first, height, length[row], end)
            TileEmitter(shape, scoring, isa, operands, tile).emit()

    control = [Arg(n, (shape.rows,), "int32") for n in ("sequence", "length", "count")]
    return kernel(name, [*_inputs(shape), *_cache(shape, isa), *control, *_sinks_and_out(shape, scoring)], body)


def scratch_attention(name: str, shape: AttentionShape, scoring: Scoring, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Copies the new keys and values to scratch, then attends to live slots and the new tokens; live slots unchanged.

    Arguments: q, k, v, k_cache, v_cache, k_scratch, v_scratch, length, [sinks], out.
    """

    def body(q: Buffer, k: Buffer, v: Buffer, k_cache: Buffer, v_cache: Buffer, *rest: Buffer) -> None:
        k_scratch, v_scratch, length = rest[:3]
        operands = Operands(q, k_cache, v_cache, (k, v), rest[3] if scoring.sinks else None, rest[-1])
        cache_writes.copy_to_scratch(shape, isa, (k, v), (k_scratch, v_scratch))
        with _tiles(shape, isa) as (row, head, first, height):
            end = T.Bind(length[row] + shape.width)
            tile = Tile(row, row, head, first, height, length[row], end)
            TileEmitter(shape, scoring, isa, operands, tile).emit()

    length_arg = Arg("length", (shape.rows,), "int32")
    states = [*_cache(shape, isa), *_scratch(shape)]
    return kernel(name, [*_inputs(shape), *states, length_arg, *_sinks_and_out(shape, scoring)], body)


def commit_scratch(name: str, shape: AttentionShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Moves the first accepted[r] scratch rows of each sequence to live slots from length[r].

    Arguments: k_cache, v_cache, k_scratch, v_scratch, length, accepted.
    """

    def body(k_cache: Buffer, v_cache: Buffer, k_scratch: Buffer, v_scratch: Buffer, *control: Buffer) -> None:
        length, accepted = control
        cache_writes.commit(shape, isa, (k_scratch, v_scratch), (k_cache, v_cache), (length, accepted))

    control = [Arg(n, (shape.batch,), "int32") for n in ("length", "accepted")]
    return kernel(name, [*_cache(shape, isa), *_scratch(shape), *control], body)


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


def _cache(shape: AttentionShape, isa: VectorIsa) -> list[Arg]:
    return [
        Arg("k_cache", key_cache_shape(shape.batch, shape.kv_heads, shape.slots, shape.head_dim, isa)),
        Arg("v_cache", (shape.batch, shape.kv_heads, shape.slots, shape.value_dim)),
    ]


def _scratch(shape: AttentionShape) -> list[Arg]:
    return [
        Arg("k_scratch", (shape.batch, shape.kv_heads, shape.scratch, shape.head_dim)),
        Arg("v_scratch", (shape.batch, shape.kv_heads, shape.scratch, shape.value_dim)),
    ]


def _sinks_and_out(shape: AttentionShape, scoring: Scoring) -> list[Arg]:
    sinks = [Arg("sinks", (shape.heads,))] if scoring.sinks else []
    return [*sinks, Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim))]
