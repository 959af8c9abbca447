"""Attention that future queries may be expected to pay. Devoto et al. 2025 (arXiv 2510.00636), section 3.

Queries before rope are taken as normally distributed; turned by the mean rotation of the positions ahead, the expected
exp(scale * q.k) is exp(mean + variance / 2) of the logits. Mean and variance are those of the latest queries.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dspark_compiler.passes.kv_policies.base import NEVER, Policy, SlotView
from dspark_compiler.passes.kv_policies.layer import Rotation

_SINKS = 4  # first tokens, whose huge logits would swallow the others' share; they are protected anyway


@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """Expected share of attention times the norm of the value it would bring."""

    name: ClassVar[str] = "expected-attention"
    ring: ClassVar[int | Literal["all"]] = 64
    queries: ClassVar[Literal["rotated", "plain"]] = "plain"

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        assert view.layer.rope is not None
        mean, variance = view.logit_moments(rotate_ahead(view.queries(), view.layer.rope, view.length))
        hidden = (~view.in_use()) | (view.positions() < _SINKS)  # [1,G,C]
        heads, groups = mean.shape[1], hidden.shape[1]
        logits = (mean + variance / 2).reshape(1, groups, heads // groups, -1)
        share = torch.where(hidden[:, :, None], -NEVER, logits).softmax(-1).mean(2)
        values = view.values()
        return share * (values * values).sum(-1).sqrt()


def rotate_ahead(queries: Tensor, rope: Rotation, length: Tensor) -> Tensor:
    """Queries [1,H,R,D] before rope, turned by the mean rotation of the positions from ``length`` on."""
    angle = rope.angle * length.to(torch.float32)
    cos, sin = angle.cos(), angle.sin()
    cos, sin = cos * rope.cos_ahead - sin * rope.sin_ahead, sin * rope.cos_ahead + cos * rope.sin_ahead
    half = queries.shape[-1] // 2
    turned = torch.cat([-queries[..., half:], queries[..., :half]], dim=-1)
    return queries * cos + turned * sin
