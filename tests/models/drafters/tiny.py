"""Tiny drafters with random weights, one of each kind."""

from dataclasses import replace
from typing import Any

import torch

from dspark_compiler.models.drafters.base import Drafter
from dspark_compiler.models.drafters.checkpoint import build
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.heads import Heads, TargetIdentity

V, D, G = 48, 16, 4

DSPARK = DrafterConfig(
    drafter_type="dspark",
    backbone="qwen3",
    hidden_size=D,
    vocab_size=V,
    num_target_layers=5,
    target_layer_ids=(-1, 1, 3),
    block_size=G,
    num_hidden_layers=2,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    rope={"rope_type": "default", "rope_theta": 10000.0},
    mask_token_id=47,
    markov_rank=6,
    markov_head_type="rnn",
    enable_confidence_head=True,
    confidence_head_with_markov=True,
)
_NO_HEADS: dict[str, Any] = {
    "markov_rank": 0,
    "enable_confidence_head": False,
    "confidence_head_with_markov": False,
}

CONFIGS: dict[str, DrafterConfig] = {
    "rnn": DSPARK,
    "gated": replace(DSPARK, markov_head_type="gated", confidence_head_with_markov=False),
    "vanilla": replace(DSPARK, markov_head_type="vanilla", attention_bias=True, num_key_value_heads=4),
    "dflash": replace(DSPARK, backbone="llama", **_NO_HEADS),
    "gemma4": replace(DSPARK, backbone="gemma4", hidden_act="gelu_pytorch_tanh", attention_k_eq_v=True),
    "medusa": replace(DSPARK, drafter_type="medusa", target_layer_ids=(), num_hidden_layers=1, **_NO_HEADS),
    "eagle3": replace(DSPARK, drafter_type="eagle3", num_hidden_layers=1, **_NO_HEADS),
}

TARGET = TargetIdentity("tiny", D, V, 5, "ab" * 32)


def drafter(name: str, seed: int = 3) -> Drafter:
    """Weights large enough that every part shows in the result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build(CONFIGS[name])
        for tensor in made.state_dict().values():
            # Scales of 1 would hide a norm that is left out, biases of 0 a bias that is.
            centre = 1.0 if tensor.ndim == 1 and bool((tensor == 1).all()) else 0.0
            tensor.copy_(centre + 0.3 * torch.randn(tensor.shape))
    return made.eval().requires_grad_(False)


def heads(name: str = "rnn") -> Heads:
    """Of the drafter of that name."""
    return Heads(drafter(name), TARGET, None, {"steps": 7, "data": ["a.jsonl"], "loss": 0.5})
