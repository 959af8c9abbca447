"""EAGLE-3 (Li et al. 2025, arXiv 2503.01840): a small decoder drafts token by token from the target's fused features.

A token's row reads its own embedding beside the feature of the token before it: the target's fused hidden states where
that one is confirmed, the drafter's own hidden state within a block. So a sequence's first token has no row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dspark_compiler.models.drafters.base import Draft, Drafter, Memory, RingSpec, Sampler, Target, stack_draft
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.layers import Angles, Attend, Layer, RMSNorm, Rotary, attention_scale


class Eagle3Layer(Layer):
    """A decoder layer whose attention reads an embedding beside a feature, each normed: [b,S,2d]."""

    def __init__(self, config: DrafterConfig, layer: int) -> None:
        super().__init__(config, layer, 2 * config.hidden_size)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def joined(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Embeddings and features [b,S,d] -> [b,S,2d]."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(feature)], dim=-1)

    def forward(self, embedded: Tensor, feature: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """Embeddings and features [b,S,d] -> hidden states [b,S,d]."""
        return self.add(feature, self.self_attn(self.joined(embedded, feature), angles, attend))


class Eagle3Drafter(Drafter):
    """See the module. One layer; a deeper one would need the target tokens' hidden states of each."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(len(config.target_layer_ids) * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Eagle3Layer(config, 0)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)

    @property
    def layer(self) -> Eagle3Layer:
        """The one layer."""
        layer = self.layers[0]
        assert isinstance(layer, Eagle3Layer)
        return layer

    def rings(self) -> dict[str, RingSpec]:
        """Keys and values, and the last token's feature."""
        spec = RingSpec(self.config.num_key_value_heads, self.config.head_dim, headless=True)
        return {"k.0": spec, "v.0": spec, "feature": RingSpec(1, self.config.hidden_size, short=True)}

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
        feature = self.fc(torch.cat(list(taps), dim=-1))
        before = torch.cat([memory.last("feature")[:, 0], feature[:, :-1]], dim=1)
        joined = self.layer.joined(target.embed(ids), before)
        keys, values = self.layer.self_attn.keys_values(joined, self.rotary(positions))
        memory.write("k.0", keys)
        memory.write("v.0", values)
        memory.write("feature", feature[:, None])

    def draft(self, anchor: Tensor, position: Tensor, target: Target, memory: Memory, sample: Sampler) -> Draft:
        """See Drafter.draft."""
        scale = attention_scale(self.config)
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(k)
            values.append(v)
            # The block so far; a single query sees all of it.
            return memory.attend(layer, q, torch.cat(keys, dim=2), torch.cat(values, dim=2), scale=scale)

        feature, token = memory.last("feature")[:, 0], anchor
        tokens, probs = [], []
        for k in range(self.config.block_size):
            angles = self.rotary(position[:, None] + k)
            feature = self.layer(target.embed(token[:, None]), feature, angles, attend)
            token, q = sample(k, target.logits(self.norm(feature))[:, 0])
            tokens.append(token)
            probs.append(q)
        return stack_draft(tokens, probs, None)
