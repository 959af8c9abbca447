"""NVIDIA's kvpress, whose scores ours are compared with, and one attention layer both look at.

kvpress's own ``__init__`` imports packages that its scores do not need, and replaces transformers' attention
functions; so its modules are imported without it.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding, apply_rotary_pos_emb

HEADS, GROUPS, HEAD_DIM, HIDDEN = 6, 2, 16, 48


@contextmanager
def kvpress() -> Iterator[Any]:
    """Within, ``found("knorm_press", "KnormPress")`` is that class of ``kvpress.presses``."""
    spec = importlib.util.find_spec("kvpress")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs kvpress: pip install --no-deps kvpress==0.5.5")
    package = types.ModuleType("kvpress")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["kvpress"] = package
    try:
        yield lambda module, name: getattr(importlib.import_module(f"kvpress.presses.{module}"), name)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "kvpress"]:
            del sys.modules[name]


@dataclass(frozen=True)
class Layer:
    """A Llama attention layer of random weights, and what it makes of T random tokens.

    hidden [1,T,HIDDEN], plain [1,HEADS,T,HEAD_DIM] queries before rope and query after it, key and value
    [1,GROUPS,T,HEAD_DIM], attentions [1,HEADS,T,T].
    """

    module: nn.Module
    hidden: Tensor
    plain: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    attentions: Tensor
    position_embeddings: tuple[Tensor, Tensor]

    def asked(self, press: Any, *, attentions: bool = True) -> Tensor:
        """Scores that a press gives the tokens, [1,GROUPS,T]."""
        scores: Tensor = press.score(*self._arguments(attentions))
        return scores

    def kept(self, press: Any) -> list[list[int]]:
        """The tokens that a press keeps, per head, in their order."""
        keys, _ = press.compress(*self._arguments(True))
        found = (self.key[0, :, :, None] == keys[0, :, None]).all(-1).any(-1)
        return [row.nonzero().flatten().tolist() for row in found]

    def _arguments(self, attentions: bool) -> tuple[Any, ...]:
        kwargs = {"position_embeddings": self.position_embeddings}
        return self.module, self.hidden, self.key, self.value, self.attentions if attentions else None, kwargs


def attention_layer(tokens: int, layer: int = 1, layers: int = 4) -> Layer:
    """A layer, the same at every call."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_DIM,
        num_hidden_layers=layers,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(23)
        module = LlamaAttention(config, layer)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        module.rotary_emb = LlamaRotaryEmbedding(config)
        hidden = torch.randn(1, tokens, HIDDEN)
        plain, key, value = (
            projection(hidden).view(1, tokens, -1, HEAD_DIM).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        cos, sin = module.rotary_emb(hidden, torch.arange(tokens)[None])
        query, key = apply_rotary_pos_emb(plain, key, cos, sin)
        logits = query @ key.repeat_interleave(HEADS // GROUPS, 1).mT * HEAD_DIM**-0.5
        attentions = logits.masked_fill(~torch.ones(tokens, tokens).tril().bool(), -torch.inf).softmax(-1)
    module.requires_grad_(False)
    return Layer(module, hidden, plain, query, key, value, attentions, (cos, sin))
