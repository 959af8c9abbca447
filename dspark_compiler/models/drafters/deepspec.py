"""Drafters as DeepSpec publishes them: config.json in transformers' form, safetensors in one file or in shards.

Their conventions are those of our modules, so that names and weights need no change: a block is
[anchor, mask, …], its slot j predicts the token j + 1 after the anchor, and tap l is the output of decoder layer l
(``hidden_states[l + 1]``). Architectures outside the table may differ in just that, and are refused. Checkpoints bring
their own embedding and head, which must be the target's: those are compared and not kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.checkpoint import CONFIG, WEIGHTS, build
from dspark_compiler.models.drafters.config import Backbone, DrafterConfig, DrafterType
from dspark_compiler.models.drafters.heads import Heads, TargetIdentity
from dspark_compiler.models.drafters.tensors import fill, read_tensors
from dspark_compiler.models.drafters.validate import check_config

ARCHITECTURES: dict[str, tuple[DrafterType, Backbone]] = {
    "Qwen3DSparkModel": ("dspark", "qwen3"),
    "LlamaDSparkModel": ("dspark", "llama"),
    "Gemma4DSparkModel": ("dspark", "gemma4"),
    "Qwen3Eagle3Model": ("eagle3", "qwen3"),
    "Gemma4Eagle3Model": ("eagle3", "gemma4"),
}

# Tensors that are the target's, by what they are.
SHARED = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}

_INDEX = f"{WEIGHTS}.index.json"
_REFETCH = "fetch the checkpoint again"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: the heads, and the copies it brings of the target's tensors [V,d], by the names of SHARED."""

    heads: Heads
    shared: Mapping[str, Tensor]


def is_deepspec(folder: Path) -> bool:
    """Whether a folder's config names an architecture of the table."""
    try:
        data = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and _architecture(data) in ARCHITECTURES


def read_deepspec(folder: Path) -> Checkpoint:
    """The drafter of a checkpoint, weights as float32.

    Raises:
        InputError: a file is missing or damaged, an architecture or a setting our drafters do not have, or tensors
            that are missing, left over, misshapen or of a type that is not read.
    """
    config = _read_config(folder / CONFIG)
    where = f"{folder / WEIGHTS}"
    check_config(config, f"{folder / CONFIG}")
    tensors = _read_weights(folder)
    shared = {name: tensors.pop(name) for name in SHARED if name in tensors}
    for name, tensor in shared.items():
        if tuple(tensor.shape) != (config.vocab_size, config.hidden_size):
            raise InputError(
                f"{where}: tensor {name} has shape {tuple(tensor.shape)}, its config says "
                f"{(config.vocab_size, config.hidden_size)}; {_REFETCH}"
            )
    drafter = build(config)
    fill(drafter, tensors, where)
    identity = TargetIdentity("an unnamed model", config.hidden_size, config.vocab_size, config.num_target_layers, None)
    return Checkpoint(Heads(drafter.eval(), identity, None, {"imported": folder.resolve().name}), shared)


def _architecture(data: Mapping[str, Any]) -> str:
    named = data.get("architectures") or ["unnamed"]
    return str(named[0])


def _read_config(file: Path) -> DrafterConfig:
    if not file.is_file():
        raise InputError(f"{file.parent}: no {file.name}; give the folder of a DeepSpec checkpoint")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}); {_REFETCH}") from None
    if not isinstance(data, dict) or _architecture(data) not in ARCHITECTURES:
        name = _architecture(data) if isinstance(data, dict) else "unnamed"
        raise InputError(
            f"{file}: architecture {name} is not one that can be imported ({', '.join(ARCHITECTURES)}); "
            "others number their slots and layers differently"
        )
    fields = _Fields(file, data)
    kind, backbone = ARCHITECTURES[_architecture(data)]
    other = set(data.get("layer_types") or ()) - {"full_attention"}
    if other:
        raise InputError(f"{file}: layer_types: {min(map(str, other))}; drafters of full attention alone are read")
    return DrafterConfig(
        drafter_type=kind,
        backbone=backbone,
        hidden_size=fields.get("hidden_size", int),
        vocab_size=fields.get("vocab_size", int),
        num_target_layers=fields.get("num_target_layers", int),
        target_layer_ids=fields.ints("target_layer_ids"),
        num_hidden_layers=fields.get("num_hidden_layers", int),
        intermediate_size=fields.get("intermediate_size", int),
        num_attention_heads=fields.get("num_attention_heads", int),
        rms_norm_eps=float(fields.get("rms_norm_eps", float)),
        attention_bias=fields.get("attention_bias", bool, default=False),
        **(_dspark(fields) if kind == "dspark" else {"block_size": fields.get("ttt_length", int)}),
        **(_gemma4(fields) if backbone == "gemma4" else _llama_like(fields)),
    )


class _Fields:
    """The fields of a config, each asked for by its type."""

    def __init__(self, file: Path, data: Mapping[str, Any]) -> None:
        self.file = file
        self.data = data

    def get(self, name: str, kind: type, *, default: Any = None) -> Any:
        """A field; one that is missing or null has the default, or is an error without."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.misfit(name, "missing")
        # Exact, since bool is an int; JSON may write the number 1.0 as 1.
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self.misfit(name, f"{value!r:.60} is no {kind.__name__}")
        return value

    def ints(self, name: str) -> tuple[int, ...]:
        """A list of integers."""
        values = self.get(name, list)
        if not all(type(value) is int for value in values):
            raise self.misfit(name, f"{values!r:.60} is no list of integers")
        return tuple(values)

    def head_type(self) -> Any:
        """The sequential head."""
        kind = self.get("markov_head_type", str).lower()
        if kind not in ("vanilla", "gated", "rnn"):
            raise self.misfit("markov_head_type", f"{kind!r} is not one of vanilla, gated, rnn")
        return kind

    def misfit(self, name: str, problem: str) -> InputError:
        """The error of a field."""
        return InputError(f"{self.file}: {name}: {problem}; {_REFETCH}")


def _dspark(fields: _Fields) -> dict[str, Any]:
    rank = fields.get("markov_rank", int)
    confidence = fields.get("enable_confidence_head", bool)
    return {
        "block_size": fields.get("block_size", int),
        "mask_token_id": fields.get("mask_token_id", int),
        "markov_rank": rank,
        "markov_head_type": fields.head_type() if rank else "vanilla",
        "enable_confidence_head": confidence,
        "confidence_head_with_markov": confidence and fields.get("confidence_head_with_markov", bool),
    }


def _llama_like(fields: _Fields) -> dict[str, Any]:
    if fields.get("mlp_bias", bool, default=False):
        raise fields.misfit("mlp_bias", "drafters have none")
    heads = fields.get("num_attention_heads", int)
    return {
        "num_key_value_heads": fields.get("num_key_value_heads", int, default=heads),
        "head_dim": fields.get("head_dim", int, default=fields.get("hidden_size", int) // max(heads, 1)),
        "hidden_act": fields.get("hidden_act", str),
        "rope": _rope(fields, fields.data.get("rope_parameters")),
    }


def _gemma4(fields: _Fields) -> dict[str, Any]:
    """Layers of full attention have sizes of their own in Gemma 4, written in either of two ways."""
    for name, plain in (("enable_moe_block", False), ("hidden_size_per_layer_input", 0)):
        if fields.get(name, type(plain), default=plain) != plain:
            raise fields.misfit(name, f"{fields.data[name]!r}, drafters have {plain!r}")
    shared = fields.get("attention_k_eq_v", bool)
    ropes = fields.get("rope_parameters", dict)
    if "per_layer_config" in fields.data:
        layers = list(fields.get("per_layer_config", dict).values()) or [{}]
        if any(layer != layers[0] for layer in layers):
            raise fields.misfit("per_layer_config", "layers of different sizes")
        sizes, dim, heads = _Fields(fields.file, {**fields.data, **layers[0]}), "head_dim", "num_key_value_heads"
    else:
        sizes, dim = fields, "global_head_dim"
        heads = "num_global_key_value_heads" if shared else "num_key_value_heads"
    return {
        "num_key_value_heads": sizes.get(heads, int),
        "head_dim": sizes.get(dim, int),
        "hidden_act": fields.get("hidden_activation", str),
        "attention_k_eq_v": shared,
        "rope": _rope(fields, ropes.get("full_attention", ropes)),
    }


def _rope(fields: _Fields, parameters: Any) -> dict[str, Any]:
    """Rotary parameters as transformers writes them today, or as it did before its version 5."""
    if parameters is None:
        scaling = dict(fields.get("rope_scaling", dict, default={}))
        kind = scaling.pop("type", scaling.pop("rope_type", "default"))
        parameters = {"rope_type": kind, "rope_theta": fields.get("rope_theta", float), **scaling}
    if not isinstance(parameters, dict):
        raise fields.misfit("rope_parameters", f"{parameters!r:.60} is no object")
    rope = {"rope_type": "default", **parameters}
    if rope["rope_type"] != "default":
        rope.setdefault("max_position_embeddings", fields.get("max_position_embeddings", int))
    return rope


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / _INDEX
    if not index.is_file():
        return read_tensors(folder / WEIGHTS)
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not an index of shards ({type(error).__name__}: {error}); {_REFETCH}") from None
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= read_tensors(folder / Path(shard).name)
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise InputError(f"{index}: tensor {absent[0]} is in none of its shards; {_REFETCH}")
    return tensors
