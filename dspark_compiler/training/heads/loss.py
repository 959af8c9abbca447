"""The loss of DSpark (eqs. 9 to 12) over the vocabulary, without a [rows, V] tensor that outlives a chunk.

The loss of a row needs its logits only once: its gradient with respect to them has a closed form, so the forward pass
of a chunk computes the gradients of hidden states and sequential head right away, and drops the logits.
R rows (slots of blocks), d hidden size, r rank, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark_compiler.training.heads.target import multiply

CE_WEIGHT, L1_WEIGHT, CONFIDENCE_WEIGHT = 0.1, 0.9, 1.0
_CHUNK = {"cuda": 1 << 28, "cpu": 1 << 25}  # elements of a [rows, V] tensor; a few float32 ones live at a time
_TINY = 1e-30


@dataclass(frozen=True)
class Rows:
    """hidden [R,d] of the drafter, latent [R,r] or None, the target's final hidden states [R,d], and ids [R]."""

    hidden: Tensor
    latent: Tensor | None
    final: Tensor
    ids: Tensor


def vocabulary_loss(rows: Rows, weight: Tensor, head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of ``weight`` [R] times 0.1 CE + 0.9 |p_d - p_t|_1, and the distance |p_d - p_t|_1 [R] without a gradient.

    head [V,d] is the target's, bias [V,r] the sequential head's W2.
    """
    total, distance = _VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        rows.hidden, rows.latent, bias, rows.final, rows.ids, weight, head
    )
    return total, distance


def confidence_loss(logits: Tensor, distance: Tensor, weight: Tensor) -> Tensor:
    """Sum of ``weight`` times the cross entropy of confidence logits [R] against 1 - |p_d - p_t|_1 / 2 (eq. 8)."""
    label = (1 - distance / 2).clamp(0, 1)
    losses = F.binary_cross_entropy_with_logits(logits.float(), label, reduction="none")
    return (losses * weight).sum()


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        latent: Tensor | None,
        bias: Tensor | None,
        final: Tensor,
        ids: Tensor,
        weight: Tensor,
        head: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wants = ctx.needs_input_grad[0]
        dtype = head.dtype
        table = head if bias is None else torch.cat([head, bias.detach().to(dtype)], dim=1)
        features = hidden.detach() if latent is None else torch.cat([hidden, latent], dim=-1).detach()
        to_features = torch.empty_like(features) if wants else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if wants and bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float32)
        distances = []
        size = head.shape[1]
        kind = hidden.device.type
        rows, chunk = max(1, _CHUNK[kind] // len(head)), _compiled_chunk if kind == "cuda" else _chunk
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            for begin in range(0, len(features), rows):
                part = slice(begin, begin + rows)
                read = features[part].to(dtype)
                drafted, wanted = multiply(read, table), multiply(final[part].to(dtype), head)
                loss, distance, gradient = chunk(drafted, wanted, ids[part], dtype if wants else None)
                total += (loss * weight[part]).sum()
                distances.append(distance)
                if gradient is not None and to_features is not None:
                    factor = L1_WEIGHT * weight[part, None]
                    to_features[part] = (gradient @ table) * factor
                    if to_bias is not None:
                        latents = (features[part, size:] * factor).to(dtype)
                        to_bias += multiply(gradient.T, latents.T.contiguous())
        ctx.size = size
        ctx.latent_dtype = None if latent is None else latent.dtype
        ctx.hidden_dtype = hidden.dtype
        ctx.save_for_backward(to_features, to_bias)
        distance = torch.cat(distances)
        ctx.mark_non_differentiable(distance)
        return total, distance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_features, to_bias = ctx.saved_tensors
        scaled = to_features * gradients[0]
        to_hidden = scaled[:, : ctx.size].to(ctx.hidden_dtype)
        to_latent = None if ctx.latent_dtype is None else scaled[:, ctx.size :].to(ctx.latent_dtype)
        return to_hidden, to_latent, None if to_bias is None else to_bias * gradients[0], None, None, None, None


def _chunk(
    drafted_logits: Tensor, wanted_logits: Tensor, ids: Tensor, wants: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss and distance [R], and 1 / L1_WEIGHT of the loss's gradient [R,V] with respect to the logits, as ``wants``.

    With s the sign of p_d - p_t and c = CE_WEIGHT / L1_WEIGHT, the gradient is s p_d + (c - <s,p_d>) p_d, less c at the
    id.
    """
    drafted, wanted = drafted_logits.softmax(-1), wanted_logits.softmax(-1)
    difference = drafted - wanted
    distance = difference.abs().sum(-1)
    chosen = drafted.gather(1, ids[:, None])[:, 0]
    loss = CE_WEIGHT * -chosen.clamp_min(_TINY).log() + L1_WEIGHT * distance
    if wants is None:
        return loss, distance, None
    ratio = CE_WEIGHT / L1_WEIGHT
    signed = difference.sign() * drafted
    factor = ratio - signed.sum(-1, keepdim=True)
    own = torch.arange(drafted.shape[1], device=ids.device) == ids[:, None]
    gradient = signed + factor * drafted - torch.where(own, ratio, 0.0)
    return loss, distance, gradient.to(wants)


# Passes over [R,V] take the time, not the products: compiled, there are four instead of a dozen.
_compiled_chunk = torch.compile(_chunk)
