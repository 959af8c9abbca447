"""What the caller of an entry point gives it, in order: the table of docs/architecture.md as data."""

import torch

from dspark_compiler.graph.program import EntryKind, TensorSpec


def entry_inputs(
    kind: EntryKind,
    batch: int,
    width: int,
    *,
    cached: bool,
    pruned: bool = False,
    logits: TensorSpec | None = None,
    draft_probs: TensorSpec | None = None,
) -> dict[str, TensorSpec]:
    """Names, shapes and types of an entry point's inputs, in call order.

    Args:
        kind: how the runtime drives the entry point.
        batch: sequences a call works on.
        width: tokens a sequence: of ``draft`` those it makes, of ``accept`` those of the verify before it.
        cached: whether the KV cache has been inserted; before that there is no ``commit``.
        pruned: whether slots are evicted; before that there is no ``evict``, and no input says how many are free.
        logits: what the target yields for a verify; ``accept`` alone needs to know.
        draft_probs: the distributions its tokens were drawn from, None where they are certain.
    """
    if kind in (EntryKind.DRAFT, EntryKind.ACCEPT):
        return _round_inputs(kind, batch, width, logits, draft_probs)
    tokens = TensorSpec((batch, width), torch.int64)
    per_row = TensorSpec((batch,), torch.int32)
    free = {"free": per_row} if pruned else {}
    if kind is EntryKind.EVICT:
        return {"sequence": per_row, "length": per_row, "free": per_row, "need": per_row, "pending": per_row}
    if kind is EntryKind.COMMIT:
        return {"length": per_row, "accepted": per_row} | free
    inputs = {"input_ids": tokens, "positions": tokens}
    if not cached:
        return inputs
    if kind is EntryKind.VERIFY:
        return inputs | {"length": per_row} | free
    return inputs | {"sequence": per_row, "length": per_row, "count": per_row} | free


def _round_inputs(
    kind: EntryKind, batch: int, width: int, logits: TensorSpec | None, draft_probs: TensorSpec | None
) -> dict[str, TensorSpec]:
    """Inputs of the two steps of a speculative round that sample."""
    token, number = TensorSpec((batch,), torch.int64), TensorSpec((batch,), torch.int32)
    real = TensorSpec((batch,), torch.float32)
    sampling = {
        "uniform": TensorSpec((batch, width), torch.float32),
        "temperature": real,
        "top_k": number,
        "top_p": real,
        "min_p": real,
    }
    place = {"position": token, "length": number}
    if kind is EntryKind.DRAFT:
        return {"anchor": token} | place | sampling
    assert logits is not None, "accept compares with the target's logits"
    inputs = {"tokens": TensorSpec((batch, width), torch.int64), "logits": logits, "count": number} | place | sampling
    return inputs if draft_probs is None else inputs | {"draft_probs": draft_probs}
