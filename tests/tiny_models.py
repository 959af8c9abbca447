"""Tiny random-weight causal language models, one a family and variant, for tests of any stage.

Each value of ``TINY`` makes a float32 transformers model in eval mode with gradients off: vocabulary 128, 2
layers, and weights large enough that attention, windows and experts all show in the logits. Options are its config's.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB = 128
WINDOW = 5  # the sliding window wherever a family has one

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_HEAD = {"head_dim": 8}
_SLIDE = {"sliding_window": WINDOW}
_ALTERNATE = {"layer_types": ["sliding_attention", "full_attention"]}


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


def _model(config_class: str, base: bool = True, **options: Any) -> PreTrainedModel:
    config = getattr(transformers, config_class)(**(_BASE if base else {}) | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        for parameter in model.parameters():
            # Scales of 1 would hide a norm that is left out, biases of 0 a bias that is.
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            torch.nn.init.normal_(parameter, centre, 0.2)
    return model.eval().requires_grad_(False)


def _entry(
    config_class: str, *parts: dict[str, Any], base: bool = True, **options: Any
) -> Callable[[], PreTrainedModel]:
    for part in parts:
        options = part | options
    return partial(_model, config_class, base, **options)


_LONGROPE = _rope(
    "longrope",
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[2.0, 3.0, 4.0, 5.0],
    original_max_position_embeddings=32,
)
_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
_MOE = {"num_experts_per_tok": 2}

TINY: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": _entry("LlamaConfig"),
    "llama-tied": _entry("LlamaConfig", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-linear": _entry("LlamaConfig", _rope("linear", factor=2.0)),
    "llama-llama3": _entry("LlamaConfig", _rope("llama3", **_LLAMA3)),
    "llama-yarn": _entry("LlamaConfig", _rope("yarn", factor=4.0, original_max_position_embeddings=24)),
    "mistral": _entry("MistralConfig", _SLIDE, _HEAD),
    "qwen2": _entry("Qwen2Config", tie_word_embeddings=True),
    "qwen2-sliding": _entry("Qwen2Config", _SLIDE, _ALTERNATE, use_sliding_window=True),
    "qwen3": _entry("Qwen3Config", head_dim=16),
    "gemma2": _entry("Gemma2Config", _SLIDE, _ALTERNATE, _HEAD, query_pre_attn_scalar=12, tie_word_embeddings=True),
    "gemma3": _entry("Gemma3TextConfig", _SLIDE, _ALTERNATE, _HEAD, query_pre_attn_scalar=12, tie_word_embeddings=True),
    "phi3": _entry("Phi3Config"),
    "phi3-longrope": _entry("Phi3Config", _LONGROPE, original_max_position_embeddings=32),
    "olmo2": _entry("Olmo2Config"),
    "granite": _entry(
        "GraniteConfig",
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=2.0,
    ),
    "smollm3": _entry("SmolLM3Config", no_rope_layers=[1, 0]),
    "gpt2": _entry(
        "GPT2Config", base=False, vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=96, eos_token_id=2
    ),
    "gpt_neox": _entry("GPTNeoXConfig", _rope("default", partial_rotary_factor=0.5)),
    "mixtral": _entry("MixtralConfig", _MOE, _SLIDE, num_local_experts=4),
    "qwen3_moe": _entry("Qwen3MoeConfig", _MOE, _HEAD, num_experts=4, moe_intermediate_size=24),
    "gpt_oss": _entry("GptOssConfig", _MOE, _SLIDE, _HEAD, _rope("default"), num_local_experts=4, intermediate_size=64),
}


@cache
def tiny(name: str) -> PreTrainedModel:
    """The model of that name, one for all tests of a process; who changes it makes one of their own."""
    return TINY[name]()
