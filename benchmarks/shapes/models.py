"""Qwen3's shapes, and drafters for them as DeepSpec trains them: modules that can be traced and take no memory."""

from typing import Any

import torch
from torch import nn

from dspark_compiler.models.drafters.checkpoint import build
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.heads import Heads, TargetIdentity

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
_COMMON = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
_ROPE = {"rope_theta": 1000000.0, "rope_type": "default"}
_TAPS = (1, 9, 17, 25, 33)  # of DeepSpec's drafters for targets of 36 layers
_MASK = 151669


def shape_config(name: str, layers: int | None = None) -> Any:
    """The transformers config of these shapes, perhaps of fewer layers."""
    from transformers import Qwen3Config

    sizes = _COMMON | SHAPES[name]
    if layers is not None:
        sizes["num_hidden_layers"] = layers
    return Qwen3Config(max_position_embeddings=40960, rope_parameters=_ROPE, **sizes)


def hollow_model(config: Any) -> Any:
    """The model with weights that have shapes alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                hollow = torch.zeros(()).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(hollow, requires_grad=False)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def hollow_heads(name: str, config: Any) -> Heads:
    """DeepSpec's drafter for a Qwen3 target: five layers, seven drafts, a vanilla sequential head of rank 256."""
    layers = config.num_hidden_layers
    drafter_config = DrafterConfig(
        drafter_type="dspark",
        backbone="qwen3",
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_target_layers=layers,
        target_layer_ids=tuple(tap for tap in _TAPS if tap < layers - 1),
        block_size=7,
        num_hidden_layers=5,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        hidden_act=config.hidden_act,
        rope=_ROPE,
        mask_token_id=_MASK,
        markov_rank=256,
        markov_head_type="vanilla",
        enable_confidence_head=True,
        confidence_head_with_markov=True,
    )
    with torch.device("meta"):
        drafter = build(drafter_config)
    rotary = drafter.rotary
    assert isinstance(rotary, nn.Module)
    drafter.rotary = type(rotary)(drafter_config)
    for module in drafter.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.ndim == 1:
                module._parameters[key] = nn.Parameter(torch.ones(parameter.shape), requires_grad=False)
    identity = TargetIdentity(name, config.hidden_size, config.vocab_size, layers, None)
    return Heads(drafter.eval().requires_grad_(False), identity)
