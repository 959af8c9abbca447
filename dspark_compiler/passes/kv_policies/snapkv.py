"""What the end of the prompt looks at. Li et al. 2024, SnapKV (arXiv 2404.14469), section 4 (voting and pooling)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dspark_compiler.passes.kv_policies.base import NEVER, Policy, SlotView

_WINDOW = 64  # queries that vote; their own tokens stay
_POOL = 5  # neighbouring tokens whose votes are averaged


@dataclass(frozen=True)
class SnapKV(Policy):
    """Attention of the last 64 queries, averaged over each slot's neighbours and the heads that share it."""

    name: ClassVar[str] = "snapkv"
    ring: ClassVar[int | Literal["all"]] = _WINDOW

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        voters = view.positions() >= view.length - _WINDOW
        votes = torch.where(voters, 0.0, view.per_kv_head(view.attention_mass(_WINDOW)) / _WINDOW)
        return torch.where(voters, NEVER, _pooled(votes))


def _pooled(votes: Tensor) -> Tensor:
    """Mean over each slot and two neighbours on either side, zeros beyond the ends; [1,G,C]."""
    slots, reach = votes.shape[-1], _POOL // 2
    edge = torch.zeros_like(votes[..., :reach])
    padded = torch.cat([edge, votes, edge], dim=-1)
    total = padded[..., :slots]
    for shift in range(1, _POOL):
        total = total + padded[..., shift : shift + slots]
    return total / _POOL
