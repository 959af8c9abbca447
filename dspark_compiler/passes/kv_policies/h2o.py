"""Heavy hitters: attention received so far. Zhang et al. 2023, H2O (arXiv 2306.14048), section 4.

The sum is divided by the number of queries that could see the token, or the oldest would win by age alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dspark_compiler.passes.kv_policies.base import Policy, SlotView


@dataclass(frozen=True)
class HeavyHitters(Policy):
    """Mean attention paid to a slot by all confirmed queries since its token came, and by the heads that share it."""

    name: ClassVar[str] = "h2o"
    ring: ClassVar[int | Literal["all"]] = "all"
    keeps: ClassVar[Literal["nothing", "sums", "tokens"]] = "sums"

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        positions = view.positions()
        # A token that came after the last time has no sum yet; what lies in its slot is another's.
        old = positions < view.length - view.pending
        before = torch.where(old, view.slot_scores(), 0.0)
        total = before + view.per_kv_head(view.attention_mass(2**30, pending_only=True))
        view.keep_slot_scores(total)
        return total / (view.length - positions).to(torch.float32).clamp(min=1.0)
