"""Medusa heads: each predicts one token further ahead from the target's last hidden state (Cai et al. 2024).

Head k reads h_t, from which the target's own head made the anchor x_{t+1}, and predicts x_{t+2+k}. Heads do not see
each other's tokens. Tensors are named as in published Medusa checkpoints: ``{k}.{i}.linear`` for residual blocks,
``{k}.{blocks}`` for the head's own projection to the vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dspark_compiler.models.drafters.base import Draft, Drafter, Memory, RingSpec, Sampler, Target, stack_draft
from dspark_compiler.models.drafters.config import DrafterConfig


class ResidualBlock(nn.Module):
    """x + silu(Wx + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """X [..., d]."""
        return x + F.silu(self.linear(x))


class MedusaDrafter(Drafter):
    """See the module."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        for k in range(config.block_size):
            blocks = [ResidualBlock(config.hidden_size) for _ in range(config.num_hidden_layers)]
            self.add_module(
                str(k), nn.Sequential(*blocks, nn.Linear(config.hidden_size, config.vocab_size, bias=False))
            )

    @property
    def reads_final_hidden(self) -> bool:
        """Always."""
        return True

    def rings(self) -> dict[str, RingSpec]:
        """The last token's hidden state."""
        return {"hidden": RingSpec(1, self.config.hidden_size, short=True)}

    def remember(
        self,
        taps: Sequence[Tensor],
        final: Tensor | None,
        ids: Tensor,
        positions: Tensor,
        target: Target,
        memory: Memory,
    ) -> None:
        """See Drafter.remember."""
        assert final is not None
        memory.write("hidden", final[:, None])

    def draft(self, anchor: Tensor, position: Tensor, target: Target, memory: Memory, sample: Sampler) -> Draft:
        """See Drafter.draft."""
        hidden = memory.last("hidden")[:, 0, 0]
        tokens, probs = [], []
        for k in range(self.config.block_size):
            token, q = sample(k, self.get_submodule(str(k))(hidden))
            tokens.append(token)
            probs.append(q)
        return stack_draft(tokens, probs, None)
