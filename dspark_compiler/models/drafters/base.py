"""The one interface of drafters with weights: what they keep of confirmed tokens, and how they draft from that.

The same modules are trained, imported, and traced into the compiled graph: there is one definition of each. Whoever
runs a drafter gives it three things that differ between those uses: the target's embedding and head, a memory of
confirmed tokens, and a way to draw.

Shapes: b sequences, S tokens, d hidden size, m tapped layers, g draft tokens (gamma), V vocabulary,
H query heads, G key/value heads, D head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dspark_compiler.models.drafters.config import DrafterConfig


class Target(Protocol):
    """What a drafter shares with its target."""

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [b,S] to what the target's first layer is given, [b,S,d]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [b,S,d] to logits [b,S,V]: head, and whatever the target does to its output."""


class Memory(Protocol):
    """Rings that keep a row for each of a sequence's last tokens (graph/draft_ops.py); names are the drafter's."""

    def write(self, name: str, rows: Tensor) -> None:
        """Rows [b,G,S,D] of the tokens at hand."""

    def last(self, name: str) -> Tensor:
        """The row of the last confirmed token before those at hand, [b,G,1,D]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Attention of q [b,H,S,D] to the rings ``k.LAYER``, ``v.LAYER`` and all of a block's own k, v [b,G,T,D].

        Returns [b,S,H,D].
        """


class Sampler(Protocol):
    """Draws draft tokens."""

    def __call__(self, step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The token of draft ``step`` [b] from logits [b,V], and the distribution [b,V] it was drawn from."""


@dataclass(frozen=True)
class RingSpec:
    """Heads and row size of a ring.

    ``short`` where only the last token's row is read; ``headless`` where the row of a sequence's first token is not
    attended to.
    """

    heads: int
    size: int
    short: bool = False
    headless: bool = False


@dataclass(frozen=True)
class Draft:
    """tokens int64 [b,g]; probs [b,g,V], what each was drawn from; confidence logits [b,g], None if it gives none."""

    tokens: Tensor
    probs: Tensor
    confidence: Tensor | None


class Drafter(nn.Module, ABC):
    """A drafter with weights."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def rings(self) -> dict[str, RingSpec]:
        """The rings it keeps."""

    @property
    def reads_final_hidden(self) -> bool:
        """Whether ``remember`` needs what the target's head reads."""
        return False

    @abstractmethod
    def remember(
        self,
        taps: Sequence[Tensor],
        final: Tensor | None,
        ids: Tensor,
        positions: Tensor,
        target: Target,
        memory: Memory,
    ) -> None:
        """Writes down what drafting needs of these target tokens, confirmed or being verified.

        taps: m outputs [b,S,d] of ``config.target_layer_ids``; final: what the head reads [b,S,d], None unless
        ``reads_final_hidden``; ids, positions int64 [b,S].
        """

    @abstractmethod
    def draft(self, anchor: Tensor, position: Tensor, target: Target, memory: Memory, sample: Sampler) -> Draft:
        """A block of tokens after the anchor, the last token the target produced, which is not in memory yet.

        anchor, position int64 [b].
        """


def stack_draft(tokens: list[Tensor], probs: list[Tensor], confidence: Tensor | None) -> Draft:
    """A draft out of its steps: tokens [b] and probs [b,V] each; confidence [b,g]."""
    return Draft(torch.stack(tokens, dim=1), torch.stack(probs, dim=1), confidence)
