"""Batches of sequences with the anchors of their blocks, all laid out on the CPU.

b sequences, S tokens, A anchors a sequence, g slots a block. A block's anchor stands at position a; slot j predicts the
token at a + j + 1, and the block sees its own sequence's tokens before a.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_ALIGN = 64  # tokens a batch is padded to a multiple of


@dataclass(frozen=True)
class Sequences:
    """ids int32 [n,L], padded behind; prompt and length int32 [n] count tokens; origin [n] is the prompt's number."""

    ids: Tensor
    prompt: Tensor
    length: Tensor
    origin: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Tensor) -> "Sequences":
        """Some of them."""
        return Sequences(self.ids[index], self.prompt[index], self.length[index], self.origin[index])


def join(parts: Sequence[Sequences]) -> Sequences:
    """All of them as one, padded to the widest."""
    width = max(part.ids.shape[1] for part in parts)
    ids = torch.cat([pad(part.ids, (0, width - part.ids.shape[1])) for part in parts])
    prompt, length, origin = (
        torch.cat(field) for field in zip(*((p.prompt, p.length, p.origin) for p in parts), strict=True)
    )
    return Sequences(ids, prompt, length, origin)


@dataclass(frozen=True)
class Batch:
    """ids int64 [b,S]; anchor int64 [b,A]; valid bool [b,A,g], a contiguous prefix of each block, empty if no block.

    ``chosen`` int64 [R] are the valid slots' places in ``valid`` laid out flat.
    """

    ids: Tensor
    anchor: Tensor
    valid: Tensor
    chosen: Tensor

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        parts: tuple[Tensor, ...] = (self.ids, self.anchor, self.valid, self.chosen)
        if device.type == "cuda":  # only what is pinned is copied without the host waiting
            parts = tuple(part.pin_memory() for part in parts)
        return Batch(*(part.to(device, non_blocking=True) for part in parts))

    @property
    def positions(self) -> Tensor:
        """Positions of the slots, [b,A,g]."""
        return self.anchor[..., None] + torch.arange(self.valid.shape[-1], device=self.anchor.device)

    def tokens(self, shift: int) -> Tensor:
        """The token ``shift`` after each slot's position, [b,A,g]; some other one beyond the end."""
        at = (self.positions + shift).clamp(max=self.ids.shape[1] - 1)
        return self.ids.gather(1, at.flatten(1)).view_as(at)


def make_batch(sequences: Sequences, anchors: int, slots: int, generator: torch.Generator) -> Batch:
    """Draws up to ``anchors`` different anchors a sequence, in what the target wrote; a token has to follow each."""
    longest = int(sequences.length.max())
    width = -(-longest // _ALIGN) * _ALIGN
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    kept = min(width, sequences.ids.shape[1])
    ids[:, :kept] = sequences.ids[:, :kept]
    position = torch.arange(width)
    prompt, length = sequences.prompt[:, None], sequences.length[:, None]
    possible = (position >= prompt) & (position < length - 1)
    keys = torch.rand(possible.shape, generator=generator).masked_fill(~possible, -1.0)
    best, anchor = keys.topk(min(anchors, width), dim=1)
    targets = anchor[..., None] + 1 + torch.arange(slots)
    valid = (best >= 0)[..., None] & (targets < length[..., None])
    return Batch(ids, torch.where(best >= 0, anchor, 0), valid, valid.flatten().nonzero()[:, 0])


def block_mask(anchor: Tensor, length: int, slots: int) -> Tensor:
    """What the slots of each block see: [b,1,A*g,length + A*g] bool, tokens before the anchor and all of the block."""
    count = anchor.shape[1]
    before = torch.arange(length, device=anchor.device) < anchor[..., None]
    block = torch.arange(count * slots, device=anchor.device) // slots
    own = (block[:, None] == block).expand(len(anchor), -1, -1)
    return torch.cat([before.repeat_interleave(slots, dim=1), own], dim=-1)[:, None]
