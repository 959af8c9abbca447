"""What a drafter is: the fields of its ``config.json``, those of DeepSpec's checkpoints and a few of ours."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DrafterType = Literal["dspark", "medusa", "eagle3"]
Backbone = Literal["qwen3", "llama", "gemma4"]
SequentialHead = Literal["vanilla", "gated", "rnn"]

DRAFTER_TYPES: tuple[DrafterType, ...] = ("dspark", "medusa", "eagle3")
BACKBONES: tuple[Backbone, ...] = ("qwen3", "llama", "gemma4")
SEQUENTIAL_HEADS: tuple[SequentialHead, ...] = ("vanilla", "gated", "rnn")

# Tokens of the target's a drafter looks back at; it was trained on no more.
DEFAULT_WINDOW = 4096


@dataclass(frozen=True)
class DrafterConfig:
    """Sizes in elements, lengths in tokens; names are DeepSpec's where it has one.

    Attributes:
        drafter_type: which drafter; "dspark" with ``markov_rank`` 0 is DFlash.
        backbone: whose layers it is built of.
        hidden_size: the target's.
        vocab_size: the target's.
        num_target_layers: the target's.
        target_layer_ids: decoder layers whose outputs it reads, ascending; -1 is the embedding.
        block_size: tokens it drafts in a round (gamma).
        num_hidden_layers: its own (Medusa: residual blocks a head).
        mask_token_id: stands for tokens yet to be drafted.
        rope: parameters of its rotary positions, as transformers' ``rope_parameters``.
        markov_rank: r of the sequential head, 0 for none.
        enable_confidence_head: whether it says how sure it is.
        confidence_head_with_markov: whether the confidence reads the previous token too.
        attention_k_eq_v: Gemma: values are the keys before their norm.
        context_window: confirmed tokens it attends to.
    """

    drafter_type: DrafterType
    backbone: Backbone
    hidden_size: int
    vocab_size: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    block_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    rope: Mapping[str, Any]
    mask_token_id: int = 0
    attention_bias: bool = False
    markov_rank: int = 0
    markov_head_type: SequentialHead = "vanilla"
    enable_confidence_head: bool = False
    confidence_head_with_markov: bool = False
    attention_k_eq_v: bool = False
    context_window: int = DEFAULT_WINDOW

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {**dataclasses.asdict(self), "target_layer_ids": list(self.target_layer_ids), "rope": dict(self.rope)}
