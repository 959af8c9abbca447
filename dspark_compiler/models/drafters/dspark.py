"""The DSpark drafter: a block of tokens in one pass over the target's hidden states, joined by a sequential head.

Cheng et al. 2026, eqs. 2 to 7. Without a sequential head (``markov_rank`` 0) it is DFlash with DSpark's slots.
Slot j of a block, the anchor's included, predicts the token at the anchor's position + j + 1.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dspark_compiler.models.drafters.base import Draft, Drafter, Memory, RingSpec, Sampler, Target, stack_draft
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.layers import Attend, DrafterLayer, RMSNorm, Rotary, attention_scale
from dspark_compiler.models.drafters.sequential import HEADS


class ConfidenceHead(nn.Module):
    """How probable it is that the target accepts a token, as a logit (eq. 7)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[..., size] -> [...]."""
        logit: Tensor = self.proj(features).squeeze(-1)
        return logit


class DSparkDrafter(Drafter):
    """See the module. Shapes as in base.py."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(len(config.target_layer_ids) * size, size, bias=False)
        self.hidden_norm = RMSNorm(size, eps)
        self.layers = nn.ModuleList(DrafterLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(size, eps)
        self.rotary = Rotary(config)
        self.markov_head = HEADS[config.markov_head_type](config) if config.markov_rank else None
        features = size + (config.markov_rank if config.confidence_head_with_markov else 0)
        self.confidence_head = ConfidenceHead(features) if config.enable_confidence_head else None

    def rings(self) -> dict[str, RingSpec]:
        """Keys and values of each layer."""
        spec = RingSpec(self.config.num_key_value_heads, self.config.head_dim)
        return {f"{kind}.{layer}": spec for layer in range(len(self.layers)) for kind in "kv"}

    def context(self, taps: Sequence[Tensor]) -> Tensor:
        """H_ctx [b,S,d] of tapped hidden states [b,S,d] (eq. 2)."""
        mixed: Tensor = self.hidden_norm(self.fc(torch.cat(list(taps), dim=-1)))
        return mixed

    def context_rows(self, context: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values [b,G,S,D] of H_ctx [b,S,d], a pair a layer (eq. 3); the same context feeds every layer."""
        angles = self.rotary(positions)
        for layer in self.layers:
            assert isinstance(layer, DrafterLayer)
            yield layer.self_attn.keys_values(context, angles)

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
        for layer, (keys, values) in enumerate(self.context_rows(self.context(taps), positions)):
            memory.write(f"k.{layer}", keys)
            memory.write(f"v.{layer}", values)

    def block_ids(self, anchor: Tensor) -> Tensor:
        """The block's input: anchors [...] -> [..., g], masks behind each anchor."""
        masks = torch.full_like(anchor, self.config.mask_token_id)
        return torch.stack([anchor, *[masks] * (self.config.block_size - 1)], dim=-1)

    def hidden(self, block: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Normed hidden states [b,S,d] of embedded blocks [b,S,d] at positions [b,S]."""
        angles = self.rotary(positions)
        for layer in self.layers:
            block = layer(block, angles, attend)
        normed: Tensor = self.norm(block)
        return normed

    def draft(self, anchor: Tensor, position: Tensor, target: Target, memory: Memory, sample: Sampler) -> Draft:
        """See Drafter.draft."""
        steps = torch.arange(self.config.block_size, device=anchor.device)
        attend = partial(memory.attend, scale=attention_scale(self.config))
        hidden = self.hidden(target.embed(self.block_ids(anchor)), position[:, None] + steps, attend)
        return self.sample_block(hidden, target.logits(hidden), anchor, sample)

    def sample_block(self, hidden: Tensor, logits: Tensor, anchor: Tensor, sample: Sampler) -> Draft:
        """Draws left to right: hidden [b,g,d], logits [b,g,V], anchor [b] (eqs. 4 to 7)."""
        head = self.markov_head
        state = None if head is None else head.start(hidden[:, 0])
        tokens, probs, before = [], [], []
        previous = anchor
        # All rows before the first draw, each of which would have to wait for one behind it.
        for k, scores in enumerate([logits[:, k] for k in range(self.config.block_size)]):
            if head is not None:
                embedded = head.embed(previous)
                state, latent = head.step(state, hidden[:, k], embedded)
                scores = scores + head.bias(latent)
                before.append(embedded)
            previous, q = sample(k, scores)
            tokens.append(previous)
            probs.append(q)
        # Nothing waits for the confidences, so they are computed together.
        with_markov = head is not None and self.config.confidence_head_with_markov
        features = torch.cat([hidden, torch.stack(before, dim=1)], dim=-1) if with_markov else hidden
        return stack_draft(tokens, probs, None if self.confidence_head is None else self.confidence_head(features))

    def teacher_forced(self, hidden: Tensor, previous: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What training needs of all steps at once, given hidden [...,g,d] and the tokens before each slot [...,g].

        Returns the latents [...,g,r] whose bias is added to the logits, and confidence logits [...,g]; None without
        such heads.
        """
        head, features = self.markov_head, hidden
        latents = None
        if head is not None:
            embedded = head.embed(previous)
            state = head.start(hidden[..., 0, :])
            steps = []
            for k in range(hidden.shape[-2]):
                state, latent = head.step(state, hidden[..., k, :], embedded[..., k, :])
                steps.append(latent)
            latents = torch.stack(steps, dim=-2)
            if self.config.confidence_head_with_markov:
                features = torch.cat([hidden, embedded], dim=-1)
        return latents, None if self.confidence_head is None else self.confidence_head(features)
