"""Cache-free programs of tiny models, for pass tests."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dspark_compiler.config import CompileConfig
from dspark_compiler.frontend import capture as frontend
from dspark_compiler.graph.program import Program

VOCAB = 97

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, **_TOKENS),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, **_TOKENS, head_dim=8, attention_bias=True),
    "gemma2": lambda: transformers.Gemma2Config(
        **_COMMON, **_TOKENS, head_dim=8, sliding_window=12, query_pre_attn_scalar=8
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_TOKENS
    ),
}
FAMILIES = tuple(_CONFIGS)


@cache
def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of 2 layers with random weights wide enough that every part shows in the logits."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(_CONFIGS[family](), attn_implementation="eager").eval()
    for parameter in model.parameters():
        centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
        nn.init.normal_(parameter, centre, 0.2)
    return model.to(dtype).requires_grad_(False)


def capture(model: PreTrainedModel, prefill: tuple[int, ...] = (16,), batch: int = 1, verify: int = 4) -> Program:
    """The cache-free program of docs/architecture.md, as the front end makes it; a copy of the caller's own."""
    return deepcopy(_captured(model, prefill, batch, verify))


@cache
def _captured(model: PreTrainedModel, prefill: tuple[int, ...], batch: int, verify: int) -> Program:
    config = CompileConfig(max_seq_len=128, max_batch=batch, prefill_widths=prefill, verify_width=verify)
    return frontend.capture(model, config)
