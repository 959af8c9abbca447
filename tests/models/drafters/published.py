"""Checkpoints as they are published: configs written out by hand, random weights, the target's embedding and head."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dspark_compiler.models.drafters.deepspec import _read_config
from tests.models.drafters.tiny import randomized

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3DSparkModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "block_size": 4,
    "confidence_head_with_markov": True,
    "dtype": "bfloat16",
    "enable_confidence_head": True,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_types": ["full_attention", "full_attention"],
    "markov_head_type": "gated",
    "markov_rank": 6,
    "mask_token_id": 126,
    "max_position_embeddings": 96,
    "model_type": "qwen3",
    "num_anchors": 8,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_target_layers": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "target_layer_ids": [-1, 0],
    "tie_word_embeddings": False,
    "vocab_size": 128,
}

GEMMA4: dict[str, Any] = {name: value for name, value in QWEN3.items() if name != "hidden_act"} | {
    "architectures": ["Gemma4DSparkModel"],
    "attention_k_eq_v": True,
    "enable_moe_block": False,
    "global_head_dim": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "model_type": "gemma4_text",
    "num_global_key_value_heads": 1,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
}

EAGLE3: dict[str, Any] = {
    name: value
    for name, value in QWEN3.items()
    if not name.startswith(("markov", "mask", "block", "confidence", "enable"))
} | {
    "architectures": ["Qwen3Eagle3Model"],
    "draft_num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "num_hidden_layers": 1,
    "step_loss_decay": 0.8,
    "ttt_length": 5,
}


def write(folder: Path, config: dict[str, Any], target: PreTrainedModel | None = None) -> dict[str, Tensor]:
    """Writes a checkpoint in bfloat16; returns the drafter's own tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    own = {name: t.bfloat16() for name, t in randomized(_read_config(folder / "config.json"), 4).state_dict().items()}
    shared = {}
    if target is not None:
        shared["embed_tokens.weight"] = target.get_input_embeddings().weight.bfloat16().clone()
        shared["lm_head.weight"] = target.get_output_embeddings().weight.bfloat16().clone()
    save_file(own | shared, folder / "model.safetensors")
    return own


def shard(folder: Path) -> None:
    """Cuts the checkpoint's file in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for index, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"model-{index + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    total = sum(t.numel() for t in tensors.values())
    index_json = {"metadata": {"total_parameters": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
