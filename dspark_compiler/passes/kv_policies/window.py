"""Attention sinks and the newest tokens. Xiao et al. 2023, StreamingLLM (arXiv 2309.17453), section 3.2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dspark_compiler.passes.kv_policies.base import Policy, SlotView


@dataclass(frozen=True)
class Window(Policy):
    """The older, the less; the first tokens are protected anyway."""

    name: ClassVar[str] = "window"

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        return view.positions().to(torch.float32)
