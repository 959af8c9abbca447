"""What the caller of an entry point gives it, in order: the table of docs/architecture.md as data."""

import torch

from dspark_compiler.graph.program import EntryKind, TensorSpec


def entry_inputs(
    kind: EntryKind, batch: int, width: int, *, cached: bool, pruned: bool = False
) -> dict[str, TensorSpec]:
    """Names, shapes and types of an entry point's inputs, in call order.

    Args:
        kind: how the runtime drives the entry point.
        batch: sequences a call works on.
        width: tokens a sequence.
        cached: whether the KV cache has been inserted; before that there is no ``commit``.
        pruned: whether slots are evicted; before that there is no ``evict``, and no input says how many are free.
    """
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
