"""Operators that free cache slots: what scoring looks at, which slots go, and how the rest moves up.

Shapes as in cache_ops; R places of a ring of queries. ``sequence``, ``length``, ``free``, ``need`` and ``pending`` are
int32 [1]: the row of the cache, its confirmed tokens, the slots free in every layer, how many shall be free afterwards,
and the tokens confirmed since the last time slots were freed (or since the sequence began).

The query of the token at position p lies at place p % R of ring [B,H,R,D]. All this sees confirmed tokens only.
"""

import torch
from torch import Tensor

from dspark_compiler.graph.cache_ops import used_slots
from dspark_compiler.graph.reference import attention_weights, causal_mask

_NEVER = torch.iinfo(torch.int32).max


@torch.library.custom_op("dspark::append_queries", mutates_args=("ring",))
def append_queries(ring: Tensor, q: Tensor, sequence: Tensor, length: Tensor, count: Tensor) -> None:
    """Keeps the queries of confirmed tokens: of q [b,H,S,D] the first count[r] of each row go to its ring."""
    places = ring.shape[2]
    for r in range(q.shape[0]):
        start, n = int(length[r]), int(count[r])
        for i in range(max(0, n - places), n):
            ring[int(sequence[r]), :, (start + i) % places] = q[r, :, i]


@torch.library.custom_op("dspark::commit_queries", mutates_args=("ring",))
def commit_queries(ring: Tensor, scratch: Tensor, length: Tensor, accepted: Tensor) -> None:
    """Keeps the queries of accepted tokens: of scratch [B,H,N,D] the first accepted[r] of each row go to its ring."""
    places = ring.shape[2]
    for r in range(ring.shape[0]):
        start, n = int(length[r]), int(accepted[r])
        for i in range(max(0, n - places), n):
            ring[r, :, (start + i) % places] = scratch[r, :, i]


@torch.library.custom_op("dspark::append_slot_scores", mutates_args=("slot_score",))
def append_slot_scores(
    slot_score: Tensor, score: Tensor, sequence: Tensor, length: Tensor, count: Tensor, free: Tensor
) -> None:
    """Scores of confirmed tokens, [b,G,S,1], go to slot_score [B,G,C] at the slots append_attention puts them in."""
    for r in range(score.shape[0]):
        n = int(count[r])
        used = used_slots(int(length[r]), slot_score.shape[2], int(free[r]))
        slot_score[int(sequence[r]), :, used : used + n] = score[r, :, :n, 0]


@torch.library.custom_op("dspark::commit_slot_scores", mutates_args=("slot_score",))
def commit_slot_scores(slot_score: Tensor, scratch: Tensor, length: Tensor, accepted: Tensor, free: Tensor) -> None:
    """Scores of accepted tokens, the first accepted[r] of scratch [B,G,N,1], go to the slots commit_scratch uses."""
    for r in range(slot_score.shape[0]):
        n = int(accepted[r])
        used = used_slots(int(length[r]), slot_score.shape[2], int(free[r]))
        slot_score[r, :, used : used + n] = scratch[r, :, :n, 0]


@torch.library.custom_op("dspark::write_scratch", mutates_args=("scratch",))
def write_scratch(scratch: Tensor, rows: Tensor) -> None:
    """What belongs to unconfirmed tokens, [B,X,S,Y], becomes the first S of scratch [B,X,N,Y]."""
    scratch[:, :, : rows.shape[2]] = rows


@torch.library.custom_op("dspark::read_state", mutates_args=())
def read_state(state: Tensor, sequence: Tensor) -> Tensor:
    """One sequence's part of a state: [B,...] -> [1,...]."""
    return state[int(sequence[0])][None].clone()


@read_state.register_fake
def _(state, sequence):  # type: ignore[no-untyped-def]
    return state.new_empty(1, *state.shape[1:])


@torch.library.custom_op("dspark::write_state", mutates_args=("state",))
def write_state(state: Tensor, value: Tensor, sequence: Tensor) -> None:
    """Puts value [1,...] where read_state found it."""
    state[int(sequence[0])] = value[0]


@torch.library.custom_op("dspark::read_keys", mutates_args=())
def read_keys(k_cache: Tensor, k_scale: Tensor | None, sequence: Tensor) -> Tensor:
    """One sequence's keys as float32 [1,G,C,D]; slots not in use hold anything finite."""
    return _dequantized(k_cache, k_scale, int(sequence[0]))


@torch.library.custom_op("dspark::read_values", mutates_args=())
def read_values(v_cache: Tensor, v_scale: Tensor | None, sequence: Tensor) -> Tensor:
    """One sequence's values as float32 [1,G,C,Dv]; slots not in use hold anything finite."""
    return _dequantized(v_cache, v_scale, int(sequence[0]))


@read_keys.register_fake
@read_values.register_fake
def _(cache, scale, sequence):  # type: ignore[no-untyped-def]
    return cache.new_empty(1, *cache.shape[1:], dtype=torch.float32)


@torch.library.custom_op("dspark::attention_mass", mutates_args=())
def attention_mass(
    ring: Tensor,
    k_cache: Tensor,
    k_scale: Tensor | None,
    slot_position: Tensor,
    sequence: Tensor,
    length: Tensor,
    free: Tensor,
    pending: Tensor | None,
    last: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """What attention the last queries paid each slot, summed over them: float32 [1,H,C], 0 at slots not in use.

    The last n = min(last, R, length, pending) confirmed tokens' queries; ``pending`` None does not bound them.
    """
    seq, end = int(sequence[0]), int(length[0])
    used = used_slots(end, k_cache.shape[2], int(free[0]))
    n = min(last, ring.shape[2], end, *([] if pending is None else [int(pending[0])]))
    mass = ring.new_zeros(1, ring.shape[1], k_cache.shape[2])
    if n > 0:
        positions = torch.arange(end - n, end)
        queries = ring[seq][:, positions % ring.shape[2]][None]
        keys = _dequantized(k_cache, k_scale, seq)[:, :, :used]
        mask = causal_mask(positions, slot_position[seq, :, :used], window)[None]
        mass[:, :, :used] = attention_weights(queries, keys, mask, scale, softcap, sinks).sum(2)
    return mass


@attention_mass.register_fake
def _(ring, k_cache, *_):  # type: ignore[no-untyped-def]
    return ring.new_empty(1, ring.shape[1], k_cache.shape[2])


@torch.library.custom_op("dspark::logit_moments", mutates_args=())
def logit_moments(
    queries: Tensor, k_cache: Tensor, k_scale: Tensor | None, sequence: Tensor, length: Tensor, scale: float
) -> Tensor:
    """Mean and population variance, over queries [1,H,R,D], of scale * q.k of each slot: float32 [2,H,C].

    Only the first min(R, length) queries are real. Slots not in use get anything finite.
    """
    n = min(queries.shape[2], int(length[0]))
    keys = _dequantized(k_cache, k_scale, int(sequence[0]))
    group = queries.shape[1] // keys.shape[1]
    logits = (queries[:, :, :n] @ keys.repeat_interleave(group, dim=1).mT) * scale
    return torch.cat([logits.mean(2), logits.var(2, correction=0)])


@logit_moments.register_fake
def _(queries, k_cache, *_):  # type: ignore[no-untyped-def]
    return queries.new_empty(2, queries.shape[1], k_cache.shape[2])


@torch.library.custom_op("dspark::select_slots", mutates_args=())
def select_slots(
    score: Tensor,
    slot_position: Tensor,
    sequence: Tensor,
    length: Tensor,
    free: Tensor,
    need: Tensor,
    first: int,
    last: int,
) -> Tensor:
    """Which slots stay when ``need`` of them shall be free: int32 [1,G,C], where each new slot's content lies now.

    The lowest of score [1,G,C] go, of equal ones the older; what stays keeps its order. The first ``first`` and last
    ``last`` tokens of the sequence go only when nothing else is left. -1 stands for a slot that will not be in use.
    """
    seq, end = int(sequence[0]), int(length[0])
    slots = score.shape[2]
    used = used_slots(end, slots, int(free[0]))
    drop = max(0, used + int(need[0]) - slots)
    source = torch.full(score.shape, -1, dtype=torch.int32)
    bits = score[0, :, :used].contiguous().view(torch.int32)
    order = bits ^ ((bits >> 31) & _NEVER)  # sorts as the floats do, and NaN above them
    position = slot_position[seq, :, :used]
    order = order.masked_fill((position < first) | (position >= end - last), _NEVER)
    kept = order.sort(dim=1, stable=True).indices[:, drop:].sort(dim=1).values
    source[0, :, : used - drop] = kept.to(torch.int32)
    return source


@select_slots.register_fake
def _(score, *_):  # type: ignore[no-untyped-def]
    return torch.empty_like(score, dtype=torch.int32, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "dspark::compact_slots", mutates_args=("k_cache", "v_cache", "slot_position", "slot_score", "k_scale", "v_scale")
)
def compact_slots(
    k_cache: Tensor,
    v_cache: Tensor,
    slot_position: Tensor,
    source: Tensor,
    sequence: Tensor,
    slot_score: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Moves a sequence's slots up as ``select_slots`` says; those no longer in use keep what they hold."""
    seq = int(sequence[0])
    for head, row in enumerate(source[0]):
        kept = row[row >= 0].long()
        for state in (k_cache, v_cache, slot_position, slot_score, k_scale, v_scale):
            if state is not None:
                state[seq, head, : len(kept)] = state[seq, head, kept]


def _dequantized(cache: Tensor, scale: Tensor | None, sequence: int) -> Tensor:
    """One sequence of cache [B,G,C,*] as float32 [1,G,C,*]."""
    found = cache[sequence][None]
    return found.clone() if scale is None else found.float() * scale[sequence][None, ..., None]
