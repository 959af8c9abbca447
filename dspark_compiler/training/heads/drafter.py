"""A new drafter for a target: its sizes, and weights to begin with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.models.drafters.checkpoint import read_heads
from dspark_compiler.models.drafters.config import DEFAULT_WINDOW, Backbone, DrafterConfig
from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.training.heads.options import DrafterOptions
from dspark_compiler.training.heads.target import FrozenTarget

_TAPS = 4
# Target types whose layers compute what a drafter's layer of that backbone does; others give no weights.
_ALIKE: Mapping[str, Backbone] = {"llama": "llama", "mistral": "llama", "qwen3": "qwen3"}
_LATENT_SPREAD = 0.25  # of W1 to begin with; W2 begins at 0, so the head adds nothing yet


def drafter_config(
    source: Source, options: DrafterOptions, tokenizer_file: Path | None, window: int = DEFAULT_WINDOW
) -> DrafterConfig:
    """The drafter's sizes are its target's; options say the rest, ``window`` how many tokens it may look back at.

    Raises:
        InputError: a tapped layer the target does not have, or its last one.
    """
    config: Any = source.config.get_text_config()
    layers, heads = source.info.num_layers, config.num_attention_heads
    return DrafterConfig(
        drafter_type="dspark",
        backbone=_ALIKE.get(config.model_type, "llama"),
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_target_layers=layers,
        target_layer_ids=_taps(options.taps, layers),
        block_size=options.block_size,
        num_hidden_layers=options.layers,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
        hidden_act=getattr(config, "hidden_act", "silu"),
        rope=_rope(config),
        mask_token_id=mask_token(source, tokenizer_file),
        markov_rank=options.markov_rank,
        markov_head_type=options.head_type,
        enable_confidence_head=options.confidence,
        confidence_head_with_markov=options.confidence and options.markov_rank > 0,
        context_window=min(window, DEFAULT_WINDOW),
    )


def mask_token(source: Source, tokenizer_file: Path | None) -> int:
    """The id that stands for tokens yet to be drafted: one that text does not hold.

    The padding token unless it ends a sequence, else the last special token that begins or ends nothing, else the
    beginning token.
    """
    config: Any = source.config.get_text_config()
    taken = {*source.eos_token_ids, source.info.bos_token_id}
    if config.pad_token_id is not None and config.pad_token_id not in taken:
        return int(config.pad_token_id)
    added = [] if tokenizer_file is None else json.loads(tokenizer_file.read_text(encoding="utf-8"))["added_tokens"]
    special = [token["id"] for token in added if token["special"] and token["id"] not in taken]
    inside = [index for index in special if index < config.vocab_size]
    return int(max(inside)) if inside else int(source.info.bos_token_id or 0)


def read_start(init: str, config: DrafterConfig) -> Mapping[str, torch.Tensor] | None:
    """The weights of the heads that ``init`` names; None if it names none.

    Raises:
        InputError: a folder without heads, or heads of another make than ``config``.
    """
    if init in ("target", "random"):
        return None
    start = read_heads(Path(init)).drafter
    for name, wanted in config.to_json().items():
        found = start.config.to_json()[name]
        if name != "context_window" and found != wanted:
            raise InputError(
                f"--init {init}: these heads have {name} {found}, not {wanted}; ask for the same, or give --init target"
            )
    return start.state_dict()


def begin(
    drafter: DSparkDrafter,
    target: FrozenTarget,
    options: DrafterOptions,
    seed: int,
    start: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Sets the weights training starts from, on the CPU: ``start``, or the same for the same seed."""
    if start is not None:
        drafter.load_state_dict(start)
        return
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in drafter.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, 0.0, 0.02, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    if drafter.markov_head is not None:
        nn.init.normal_(drafter.markov_head.markov_w1.weight, 0.0, _LATENT_SPREAD, generator=generator)
        nn.init.zeros_(drafter.markov_head.markov_w2.weight)
    if options.init == "target":
        _copy_layers(drafter, target)


@torch.no_grad()
def _copy_layers(drafter: DSparkDrafter, target: FrozenTarget) -> None:
    """Takes layers evenly spread over the target's, if it is of a kind that fits; the context is the taps' mean."""
    config: PretrainedConfig = target.model.config.get_text_config()
    if config.model_type not in _ALIKE:
        return
    count, own = len(target.layers), len(drafter.layers)
    norms = []
    for index, layer in enumerate(drafter.layers):
        given = target.layers[round((index + 1) * (count - 1) / own)].state_dict()
        mine = layer.state_dict()
        layer.load_state_dict(mine | {n: w.float() for n, w in given.items() if n in mine and w.shape == mine[n].shape})
        norms.append(given["input_layernorm.weight"].float().cpu())
    drafter.hidden_norm.weight.copy_(torch.stack(norms).mean(0))  # type: ignore[union-attr]
    drafter.norm.weight.copy_(target.model.base_model.norm.weight)  # type: ignore[union-attr]
    taps = len(drafter.config.target_layer_ids)
    drafter.fc.weight += torch.eye(drafter.config.hidden_size).repeat(1, taps) / taps


def _taps(given: tuple[int, ...] | None, layers: int) -> tuple[int, ...]:
    last = layers - 2  # what follows the last layer is normed before anyone sees it
    if given is None:
        # Shallow models have no room for four: whatever differs is kept.
        first, end = min(1, last), max(layers - 3, min(1, last))
        return tuple(sorted({first + round(i * (end - first) / (_TAPS - 1)) for i in range(_TAPS)}))
    if not given or list(given) != sorted(set(given)) or given[0] < -1 or given[-1] > last:
        raise InputError(
            f"--taps {','.join(map(str, given))}: give different layers from -1 (the embedding) to {last}, ascending; "
            f"the last of the {layers} cannot be tapped"
        )
    return given


def _rope(config: Any) -> dict[str, Any]:
    """The target's rotary parameters; those of its full attention layers where kinds differ."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    found = found.get("full_attention", found)
    if "rope_theta" not in found:
        return {"rope_type": "default", "rope_theta": 10000.0}
    more = (
        {}
        if found.get("rope_type", "default") == "default"
        else {"max_position_embeddings": config.max_position_embeddings}
    )
    return {"rope_type": "default", **found, **more}
