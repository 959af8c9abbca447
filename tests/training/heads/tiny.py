"""A tiny Llama with a byte-level tokenizer, and prompts for it."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.runtime import toy

LAYERS, SIZE, CONTEXT = 4, 32, 160


def write_model(path: Path, **options: object) -> Path:
    """A random model whose next token is far from certain, and far from uniform."""
    config = LlamaConfig(
        vocab_size=toy.V,
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=toy.BOS,
        eos_token_id=toy.EOS,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = LlamaForCausalLM(config)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    made.save_pretrained(path)
    (path / "tokenizer.json").write_text(toy.tokenizer().to_str(), encoding="utf-8")
    return path


def write_prompts(path: Path, count: int) -> Path:
    """Prompts of a few lengths."""
    lines = [json.dumps({"prompt": "ab" * (i % 7 + 1) + str(i)}) for i in range(count)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
