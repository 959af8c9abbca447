"""The drafter's hidden states of many blocks at once, and what they say about the tokens that follow.

Shapes as in anchors.py; d hidden size, R valid slots of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.models.drafters.layers import attention_scale
from dspark_compiler.training.heads.anchors import Batch, block_mask
from dspark_compiler.training.heads.loss import CONFIDENCE_WEIGHT, Rows, confidence_loss, vocabulary_loss
from dspark_compiler.training.heads.target import FrozenTarget


@dataclass(frozen=True)
class Outcome:
    """loss, a mean over slots by their weight; distance |p_d - p_t|_1 [b,A,g], 2 where a slot is not valid."""

    loss: Tensor
    distance: Tensor


def block_hidden(drafter: DSparkDrafter, taps: Sequence[Tensor], blocks: Tensor, batch: Batch) -> Tensor:
    """Normed hidden states [b,A,g,d] of embedded blocks [b,A,g,d] over taps [b,S,d] of their sequences."""
    b, count, slots, size = blocks.shape
    length = batch.ids.shape[1]
    positions = torch.arange(length, device=blocks.device).expand(b, -1)
    rows = list(drafter.context_rows(drafter.context(taps), positions))
    mask = block_mask(batch.anchor, length, slots)
    scale = attention_scale(drafter.config)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = rows[layer]
        group = q.shape[1] // k.shape[1]
        keys = torch.cat([keys, k], dim=2).repeat_interleave(group, dim=1)
        values = torch.cat([values, v], dim=2).repeat_interleave(group, dim=1)
        same = values.dtype
        out = F.scaled_dot_product_attention(q.to(same), keys.to(same), values, attn_mask=mask, scale=scale)
        return out.transpose(1, 2)

    hidden = drafter.hidden(blocks.flatten(1, 2), batch.positions.flatten(1), attend)
    return hidden.view(b, count, slots, size)


def judge_blocks(
    drafter: DSparkDrafter, target: FrozenTarget, batch: Batch, decay: float, *, sequential: bool = True
) -> Outcome:
    """The loss of a batch's blocks (eqs. 9 to 12); without ``sequential`` the sequential head adds nothing."""
    taps, final = target.read(batch.ids, drafter.config.target_layer_ids)
    # A target in bfloat16 is read by a drafter that multiplies in bfloat16; its weights stay float32.
    with torch.autocast(target.device.type, torch.bfloat16, enabled=target.dtype is torch.bfloat16):
        hidden = block_hidden(drafter, taps, target.embed(drafter.block_ids(batch.tokens(0)[..., 0])), batch)
        latents, confidence = drafter.teacher_forced(hidden, batch.tokens(0))
    head = drafter.markov_head if sequential else None
    chosen = batch.chosen
    at = batch.positions.clamp(max=batch.ids.shape[1] - 1)
    index = (at + batch.ids.shape[1] * torch.arange(len(at), device=at.device)[:, None, None]).flatten()[chosen]
    slot = torch.arange(batch.valid.shape[-1], device=at.device)
    weight = torch.exp(-slot / decay).expand_as(batch.valid).flatten()[chosen]
    rows = Rows(
        hidden=hidden.flatten(0, 2)[chosen].float(),
        latent=None if latents is None or head is None else latents.flatten(0, 2)[chosen].float(),
        final=final.flatten(0, 1)[index],
        ids=batch.tokens(1).flatten()[chosen],
    )
    loss, distance = vocabulary_loss(rows, weight, target.head, None if head is None else head.markov_w2.weight)
    if confidence is not None:
        loss = loss + CONFIDENCE_WEIGHT * confidence_loss(confidence.flatten()[chosen], distance, weight)
    spread = torch.full(batch.valid.shape, 2.0, device=distance.device).flatten().index_copy(0, chosen, distance)
    return Outcome(loss / weight.sum(), spread.view_as(batch.valid))
