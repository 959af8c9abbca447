"""Operators on the KV cache: what appends to it, attends to it, and confirms what a verify left in scratch.

Shapes: b rows of a call, S new tokens a row, H query heads, G key/value heads, D head size,
B sequences the artifact holds, C slots a sequence, N scratch rows a sequence.

``length`` int32 [b] is the confirmed tokens of a row's sequence. Its live slots are the first
``used = min(length, C - free)``, in the order of their tokens; ``free`` int32 [b] is the slots that are free in every
layer's cache, None where nothing is ever evicted. ``slot_position`` int32 [B,G,C] is the position of each slot's token;
without it a token's slot is its position.

``k_scale`` and ``v_scale`` float32 [B,G,C] belong to a cache of int8 or float8_e4m3fn: a slot holds value / scale.
What is not confirmed yet is read as it will be stored, so that a token sees the same numbers from verify and decode.
"""

import torch
from torch import Tensor

from dspark_compiler.graph.reference import causal_mask, masked_attention, quantized

Optional = Tensor | None


def used_slots(length: int, slots: int, free: int | None) -> int:
    """Live slots of a sequence, see the module."""
    return length if free is None else min(length, slots - free)


@torch.library.custom_op(
    "dspark::append_attention", mutates_args=("k_cache", "v_cache", "slot_position", "k_scale", "v_scale")
)
def append_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    sequence: Tensor,
    length: Tensor,
    count: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    free: Tensor | None = None,
    slot_position: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Attention that writes confirmed tokens straight into live slots (prefill, decode).

    k_cache [B,G,C,D], v_cache [B,G,C,Dv]; sequence/length/count int32 [b]: the sequence a row belongs to, its
    confirmed tokens, and how many of the S given are real. Token i < count goes to slot used+i; query i sees slots up
    to used+i. Rows i >= count write nothing and their output is undefined but finite.
    """
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    for r in range(q.shape[0]):
        seq, start, n = int(sequence[r]), int(length[r]), int(count[r])
        if n == 0:
            continue
        begin = used_slots(start, k_cache.shape[2], None if free is None else int(free[r]))
        end = begin + n
        _store(k_cache, k_scale, seq, begin, k[r, :, :n])
        _store(v_cache, v_scale, seq, begin, v[r, :, :n])
        positions = torch.arange(start, start + n)
        if slot_position is not None:
            slot_position[seq, :, begin:end] = positions.to(torch.int32)
        keys, values = _load(k_cache, k_scale, seq, end), _load(v_cache, v_scale, seq, end)
        mask = causal_mask(positions, _positions(slot_position, seq, keys.shape[0], end), window)
        # A token appended before another one has the smaller position, so the mask is causal in slots, too.
        out[r, :n] = masked_attention(q[r : r + 1, :, :n], keys[None], values[None], mask[None], scale, softcap, sinks)[
            0
        ]
    return out


@append_attention.register_fake
def _(q, k, v, *_):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op(
    "dspark::scratch_attention", mutates_args=("k_scratch", "v_scratch", "k_scratch_scale", "v_scratch_scale")
)
def scratch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scratch: Tensor,
    v_scratch: Tensor,
    length: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    free: Tensor | None = None,
    slot_position: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_scratch_scale: Tensor | None = None,
    v_scratch_scale: Tensor | None = None,
) -> Tensor:
    """Attention of unconfirmed tokens (verify): live slots are read, new keys and values go to scratch only.

    b = B; k_scratch [B,G,N,D], v_scratch [B,G,N,Dv], their scales float32 [B,G,N], S <= N. Query i sees all live
    slots and scratch rows <= i.
    """
    width = q.shape[2]
    rows = []
    for r in range(q.shape[0]):
        _store(k_scratch, k_scratch_scale, r, 0, k[r])
        _store(v_scratch, v_scratch_scale, r, 0, v[r])
        start = int(length[r])
        used = used_slots(start, k_cache.shape[2], None if free is None else int(free[r]))
        keys = torch.cat([_load(k_cache, k_scale, r, used), _load(k_scratch, k_scratch_scale, r, width)], dim=1)
        values = torch.cat([_load(v_cache, v_scale, r, used), _load(v_scratch, v_scratch_scale, r, width)], dim=1)
        positions = torch.arange(start, start + width)
        live = _positions(slot_position, r, keys.shape[0], used)
        mask = causal_mask(positions, torch.cat([live, positions.expand(live.shape[0], -1)], dim=1), window)
        rows.append(masked_attention(q[r : r + 1], keys[None], values[None], mask[None], scale, softcap, sinks))
    return torch.cat(rows)


@scratch_attention.register_fake
def _(q, k, v, *_):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op(
    "dspark::commit_scratch", mutates_args=("k_cache", "v_cache", "slot_position", "k_scale", "v_scale")
)
def commit_scratch(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scratch: Tensor,
    v_scratch: Tensor,
    length: Tensor,
    accepted: Tensor,
    free: Tensor | None = None,
    slot_position: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_scratch_scale: Tensor | None = None,
    v_scratch_scale: Tensor | None = None,
) -> None:
    """Moves the first accepted[r] scratch rows of each sequence to the slots after its live ones; int32 [B] each."""
    for r in range(k_cache.shape[0]):
        start, n = int(length[r]), int(accepted[r])
        used = used_slots(start, k_cache.shape[2], None if free is None else int(free[r]))
        for cache, scratch in (
            (k_cache, k_scratch),
            (v_cache, v_scratch),
            (k_scale, k_scratch_scale),
            (v_scale, v_scratch_scale),
        ):
            if cache is not None and scratch is not None:
                cache[r, :, used : used + n] = scratch[r, :, :n]
        if slot_position is not None:
            slot_position[r, :, used : used + n] = torch.arange(start, start + n, dtype=torch.int32)


def _store(store: Tensor, scales: Optional, row: int, start: int, rows: Tensor) -> None:
    """Rows [G,n,D] go to places start.. of row ``row`` of ``store`` [B,G,*,D], quantized if it has scales."""
    place = slice(start, start + rows.shape[1])
    if scales is None:
        store[row, :, place] = rows
    else:
        store[row, :, place], scales[row, :, place] = quantized(rows, store.dtype)


def _load(store: Tensor, scales: Optional, row: int, count: int) -> Tensor:
    """The first ``count`` places of a row as float [G,count,D]."""
    found = store[row, :, :count]
    return found if scales is None else found.float() * scales[row, :, :count, None]


def _positions(slot_position: Optional, row: int, heads: int, count: int) -> Tensor:
    """Positions [G,count] of a row's first slots."""
    if slot_position is None:
        return torch.arange(count).expand(heads, -1)
    return slot_position[row, :, :count]


# Operators that attend to a cache, and all that find its slots by their numbers.
ATTENDING = (torch.ops.dspark.append_attention.default, torch.ops.dspark.scratch_attention.default)
USING_SLOTS = (*ATTENDING, torch.ops.dspark.commit_scratch.default)
