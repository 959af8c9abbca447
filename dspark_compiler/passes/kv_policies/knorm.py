"""Keys of small norm draw attention. Devoto et al. 2024 (arXiv 2406.11430), section 4: keep the lowest L2 norms."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dspark_compiler.passes.kv_policies.base import Policy, SlotView


@dataclass(frozen=True)
class KeyNorm(Policy):
    """Score -|k|."""

    name: ClassVar[str] = "knorm"

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        keys = view.keys()
        return -(keys * keys).sum(-1).sqrt()
