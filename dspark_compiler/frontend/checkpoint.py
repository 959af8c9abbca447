"""What every kind of source shares: configurations, weights that must be all there, tokenizer files."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.loaded import LoadedModel, LoadedTransformers
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.models import ModelInfo, eos_token_ids
from dspark_compiler.quantization.weight import QuantizedWeight

# What an artifact carries of a source, by the names transformers gives them.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GENERATION_CONFIG = "generation_config.json"


class Source(ABC):
    """A model on disk: what it is, its weights when asked for, and its tokenizer."""

    def __init__(self, name: str, path: Path, config: PretrainedConfig, generation: GenerationConfig | None) -> None:
        check_causal(path, config)
        self.name = name
        self.path = path
        self.config = config
        self.generation_config = generation

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence."""
        return eos_token_ids(self.config, self.generation_config)

    @property
    def max_positions(self) -> int:
        """The longest text the model was made for, in tokens."""
        return int(self.config.get_text_config().max_position_embeddings)

    @property
    def info(self) -> ModelInfo:
        """The facts later stages record."""
        return ModelInfo.from_config(self.name, self.config, self.generation_config)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What had to be assumed of the model, for people to read."""
        return ()

    def load_for_compile(self) -> LoadedModel:
        """The model with float32 weights, to be captured; raises what ``load`` raises."""
        return LoadedTransformers(self.load(torch.float32), self.stored_weights)

    @abstractmethod
    def load(self, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """The model in eval mode on the CPU, without gradients.

        ``attention`` is a transformers implementation such as "eager"; None leaves the choice to transformers
        (not every model knows "sdpa").

        Raises:
            InputError: weights that are missing, left over, of another shape, or cannot be read.
        """

    def stored_weights(self, model: PreTrainedModel) -> dict[str, QuantizedWeight]:
        """The weights that are quantized on disk, by the names of ``model``, which was loaded from there."""
        return {}

    @abstractmethod
    def write_tokenizer(self, directory: Path) -> list[str]:
        """Writes the tokenizer and generation files to ``directory``; returns their names, none if there are none."""


def check_causal(path: Path, config: PretrainedConfig) -> None:
    """Refuses what is not a decoder that predicts the next token.

    Raises:
        UnsupportedModelError: names the architecture.
    """
    architecture = (config.architectures or [None])[0]
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if architecture is not None:
        known = known and architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if not known or config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{path}: {architecture or config.model_type} is not a causal language model; only those can be compiled"
        )


def load_complete(
    where: Path, config: PretrainedConfig, dtype: torch.dtype, attention: str | None, **source: Any
) -> Any:
    """Loads with transformers and accepts only a checkpoint that gives each weight exactly.

    Raises:
        InputError: names the first tensors that are missing, left over or misshapen.
    """
    with quiet():
        # The class that finds the architecture's own wants a folder to look into.
        loader = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if "state_dict" in source else AutoModelForCausalLM
        model, found = loader.from_pretrained(
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the missing and the unexpected
            local_files_only=True,
            **source,
        )
    shapes = [f"{name} {tuple(got)} for {tuple(want)}" for name, got, want in found["mismatched_keys"]]
    for what, names in (
        ("tensors are missing from the checkpoint", sorted(found["missing_keys"])),
        ("tensors have another shape than the config says", sorted(shapes)),
        ("tensors have no place in the model", sorted(found["unexpected_keys"])),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"{where}: {what}: {', '.join(names[:3])}{more}; the checkpoint and its config do not belong together"
            )
    return model.eval().requires_grad_(False)


def convert_tokenizer(directory: Path, **source: Any) -> list[str]:
    """Writes the tokenizer as transformers reads it from ``source`` in the files of today."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(local_files_only=True, **source)
        written = {Path(file).name for file in tokenizer.save_pretrained(str(directory))}
    for extra in written - set(TOKENIZER_FILES):
        (directory / extra).unlink()
    return [name for name in TOKENIZER_FILES if name in written]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON {type(content).__name__} where an object is wanted; fetch the file again")
    return content
