"""Sequential heads: what a draft token changes about the logits of the next one (DSpark, eqs. 4 to 6).

d: hidden size, r: rank, V: vocabulary; leading axes are free.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dspark_compiler.models.drafters.config import DrafterConfig, SequentialHead


class VanillaHead(nn.Module):
    """Adds W2 W1[x_{k-1}] to the logits of x_k (eqs. 4, 5)."""

    kind: ClassVar[SequentialHead] = "vanilla"

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.rank = config.markov_rank
        self.markov_w1 = nn.Embedding(config.vocab_size, self.rank)
        self.markov_w2 = nn.Linear(self.rank, config.vocab_size, bias=False)

    def embed(self, previous: Tensor) -> Tensor:
        """W1[x_{k-1}]: int64 [...] -> [..., r]."""
        embedded: Tensor = self.markov_w1(previous)
        return embedded

    def start(self, hidden: Tensor) -> Tensor | None:
        """The state before the first step; hidden [..., d]."""
        return None

    def step(self, state: Tensor | None, hidden: Tensor, embedded: Tensor) -> tuple[Tensor | None, Tensor]:
        """Hidden [..., d], embedded [..., r] -> the new state, and the latent [..., r] that ``bias`` projects."""
        return None, embedded

    def bias(self, latent: Tensor) -> Tensor:
        """[..., r] -> what is added to logits [..., V]."""
        added: Tensor = self.markov_w2(latent)
        return added


class GatedHead(VanillaHead):
    """The embedding passes a gate that reads the hidden state: W2 (e * sigmoid(gate([h; e])))."""

    kind: ClassVar[SequentialHead] = "gated"

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size + self.rank, self.rank)

    def step(self, state: Tensor | None, hidden: Tensor, embedded: Tensor) -> tuple[Tensor | None, Tensor]:
        """See VanillaHead.step."""
        gate = torch.sigmoid(self.gate_proj(torch.cat([hidden, embedded], dim=-1)))
        return None, embedded * gate


class RNNHead(VanillaHead):
    """A recurrent state remembers all tokens of the block so far (eq. 6)."""

    kind: ClassVar[SequentialHead] = "rnn"

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        self.joint_proj = nn.Linear(2 * self.rank + config.hidden_size, 3 * self.rank)

    def start(self, hidden: Tensor) -> Tensor | None:
        """Zeros [..., r]."""
        return hidden.new_zeros(*hidden.shape[:-1], self.rank)

    def step(self, state: Tensor | None, hidden: Tensor, embedded: Tensor) -> tuple[Tensor | None, Tensor]:
        """See VanillaHead.step."""
        assert state is not None
        joint = self.joint_proj(torch.cat([state, embedded, hidden], dim=-1))
        gate, candidate, out = joint.chunk(3, dim=-1)
        gate = torch.sigmoid(gate)
        return gate * state + (1 - gate) * torch.tanh(candidate), torch.tanh(out)


HEADS: dict[SequentialHead, type[VanillaHead]] = {head.kind: head for head in (VanillaHead, GatedHead, RNNHead)}
