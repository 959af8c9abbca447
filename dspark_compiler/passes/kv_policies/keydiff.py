"""Keys unlike the others matter. Park et al. 2025, KeyDiff (arXiv 2504.15364), with the mean of unit keys as anchor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dspark_compiler.passes.kv_policies.base import Policy, SlotView

_TINY = 1e-16  # a squared norm under which a key has no direction


@dataclass(frozen=True)
class KeyDiff(Policy):
    """Score -cos(k, mean of k/|k|)."""

    name: ClassVar[str] = "keydiff"

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        directions = _unit(view.keys())
        used = view.in_use().to(torch.float32)
        # The mean's length does not change the cosine, so the sum will do.
        anchor = _unit((directions * used[None, None, :, None]).sum(2, keepdim=True))
        return -(directions * anchor).sum(-1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * (vectors * vectors).sum(-1, keepdim=True).clamp(min=_TINY).rsqrt()
