"""What the newest token looks at stays. Oren et al. 2024, TOVA (arXiv 2401.06104), section 3."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dspark_compiler.passes.kv_policies.base import Policy, SlotView


@dataclass(frozen=True)
class Tova(Policy):
    """The last query's attention, averaged over all heads of the layer."""

    name: ClassVar[str] = "tova"
    ring: ClassVar[int | Literal["all"]] = 1

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        mass = view.attention_mass(1).mean(1, keepdim=True)
        return mass.expand(-1, view.layer.k_cache.shape[1], -1).contiguous()
