"""What a pruning policy is, and what it may look at.

Shapes: H query heads, G key/value heads, D head size, C slots, R places of the ring of queries; always one sequence of
one layer. A policy scores slots; which slots are protected, which go, and how the rest moves is the same for all.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dspark_compiler.passes.kv_policies.layer import LayerCache

dspark = torch.ops.dspark

NEVER = 1e30  # the score of a slot that should stay whatever the others are; not all of TVM can spell infinity


@dataclass(frozen=True)
class SlotView:
    """One sequence's part of a layer's cache, while slots are freed; what is not asked for is not computed.

    ``sequence``, ``length``, ``free`` and ``pending`` are those of graph/pruning_ops.py.
    """

    layer: LayerCache
    sequence: Tensor
    length: Tensor
    free: Tensor
    pending: Tensor

    def keys(self) -> Tensor:
        """Keys after rope, float32 [1,G,C,D]."""
        found: Tensor = dspark.read_keys(self.layer.k_cache, self.layer.k_scale, self.sequence)
        return found

    def values(self) -> Tensor:
        """Values, float32 [1,G,C,Dv]."""
        found: Tensor = dspark.read_values(self.layer.v_cache, self.layer.v_scale, self.sequence)
        return found

    def positions(self) -> Tensor:
        """Logical positions of the slots' tokens, int32 [1,G,C]; slots not in use hold anything."""
        found: Tensor = dspark.read_state(self.layer.slot_position, self.sequence)
        return found

    def in_use(self) -> Tensor:
        """Which slots hold a token, bool [C]."""
        slots = self.layer.slot_position.shape[2]
        return torch.arange(slots, dtype=torch.int32) < torch.minimum(self.length, slots - self.free)

    def queries(self) -> Tensor:
        """The ring of the latest queries, float32 [1,H,R,D]."""
        assert self.layer.ring is not None, "the policy keeps no queries"
        found: Tensor = dspark.read_state(self.layer.ring, self.sequence)
        return found

    def slot_scores(self) -> Tensor:
        """What the policy keeps with each slot, float32 [1,G,C]."""
        assert self.layer.slot_score is not None, "the policy keeps no scores"
        found: Tensor = dspark.read_state(self.layer.slot_score, self.sequence)
        return found

    def keep_slot_scores(self, value: Tensor) -> None:
        """Replaces what ``slot_scores`` returns, [1,G,C]."""
        dspark.write_state(self.layer.slot_score, value, self.sequence)

    def attention_mass(self, last: int, *, pending_only: bool = False) -> Tensor:
        """Attention that the last queries paid each slot, summed over them, float32 [1,H,C].

        Args:
            last: at most so many queries, the latest.
            pending_only: only queries confirmed since slots were freed last.
        """
        layer = self.layer
        pending = self.pending if pending_only else None
        options = (layer.scale, layer.window, layer.softcap, layer.sinks)
        states = (layer.ring, layer.k_cache, layer.k_scale, layer.slot_position)
        mass: Tensor = dspark.attention_mass(*states, self.sequence, self.length, self.free, pending, last, *options)
        return mass

    def logit_moments(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of scale * q.k over queries [1,H,R,D], float32 [1,H,C] each."""
        layer = self.layer
        moments = dspark.logit_moments(queries, layer.k_cache, layer.k_scale, self.sequence, self.length, layer.scale)
        return moments[:1], moments[1:]

    def per_kv_head(self, heads: Tensor) -> Tensor:
        """The mean over the query heads that share a key/value head: [1,H,C] -> [1,G,C]."""
        groups = self.layer.k_cache.shape[1]
        return heads.reshape(1, groups, -1, heads.shape[-1]).mean(2)


@dataclass(frozen=True)
class Policy(ABC):
    """How much each slot matters; fields are what training or the model brought.

    Attributes:
        name: as ``--kv-policy`` spells it.
        ring: how many of the latest queries it looks at; "all": every query since slots were freed last.
        queries: as attention sees them, or as they were before rope.
        keeps: a float32 with each slot: "nothing", "sums" that ``score`` updates, or "tokens": what
            ``token_maps`` make of a token when it comes.
    """

    name: ClassVar[str]
    ring: ClassVar[int | Literal["all"]] = 0
    queries: ClassVar[Literal["rotated", "plain"]] = "rotated"
    keeps: ClassVar[Literal["nothing", "sums", "tokens"]] = "nothing"

    @abstractmethod
    def score(self, view: SlotView) -> Tensor:
        """Importance of each slot, float32 [1,G,C]: the lowest go first. Traced, so without control flow on values."""

    def token_maps(self, layer: int, hidden: int, heads: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Linear maps (weight, bias), gelu in between, from a token's hidden state [hidden] to a score a head [heads].

        Raises:
            InputError: they were made for a model of other sizes.
        """
        raise AssertionError(f"{self.name} scores no tokens: layer {layer}, {hidden} to {heads}")
