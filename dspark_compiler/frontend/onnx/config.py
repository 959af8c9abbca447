"""What is known of an ONNX model besides its graph: configuration files beside it, else what the graph itself tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import GENERATION_CONFIG, check_causal, read_json
from dspark_compiler.frontend.folder import read_config, read_generation_config
from dspark_compiler.frontend.onnx.model import Decoder

_CONFIG, _GENAI_CONFIG = "config.json", "genai_config.json"
_POSITIONS = 4096  # where neither a file nor a table of positions says more
_ARCHITECTURE = "OnnxForCausalLM"  # of a model whose files name none


@dataclass(frozen=True)
class Settings:
    """The configuration, and what had to be assumed for it."""

    config: PretrainedConfig
    generation: GenerationConfig | None
    remarks: tuple[str, ...] = ()


def folder_of(file: Path) -> Path:
    """Where the files beside a model lie: its own folder, or the one above a folder that only holds the graphs."""
    own = file.resolve().parent
    above = own.parent
    return above if not (own / _CONFIG).is_file() and (above / _CONFIG).is_file() and own.name == "onnx" else own


def settings_of(file: Path, decoder: Decoder) -> Settings:
    """What is known of the decoder in ``file``.

    Raises:
        InputError: a configuration file that is not valid, or of another model.
        UnsupportedModelError: it says that the model is none for causal language.
    """
    folder = folder_of(file)
    generation = read_generation_config(folder)
    if (folder / _CONFIG).is_file():
        config = read_config(folder)
        check_causal(file, config)
        text = config.get_text_config()
        _check_same(folder / _CONFIG, "vocab_size", text.vocab_size, decoder.vocab_size)
        _check_same(folder / _CONFIG, "num_hidden_layers", text.num_hidden_layers, decoder.layers)
        return Settings(config, generation)
    facts: dict[str, Any] = {
        "architectures": [_ARCHITECTURE],
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "num_hidden_layers": decoder.layers,
    }
    remarks = []
    genai = read_json(folder / _GENAI_CONFIG).get("model", {}) if (folder / _GENAI_CONFIG).is_file() else {}
    positions = genai.get("context_length") or decoder.positions_table
    if positions is None:
        positions = _POSITIONS
        remarks.append(f"{file.name} does not say how long its texts may be: {_POSITIONS} tokens are assumed")
    facts["max_position_embeddings"] = int(positions)
    facts |= {name: genai[name] for name in ("bos_token_id", "eos_token_id") if name in genai}
    if "eos_token_id" not in facts and (generation is None or generation.eos_token_id is None):
        remarks.append(f"no {_CONFIG}, {_GENAI_CONFIG} or {GENERATION_CONFIG} says which token ends a text")
    return Settings(_plain_config(facts), generation, tuple(remarks))


def _plain_config(facts: Mapping[str, Any]) -> PretrainedConfig:
    config = PretrainedConfig()
    for name, value in facts.items():
        setattr(config, name, value)
    return config


def _check_same(file: Path, name: str, stated: int, found: int) -> None:
    if stated != found:
        raise InputError(f"{file}: {name} is {stated}, the graph's is {found}; the two do not belong together")
