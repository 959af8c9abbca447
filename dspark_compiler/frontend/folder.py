"""A Hugging Face folder, on disk already or brought from the hub."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, Mxfp4Config, PretrainedConfig, PreTrainedModel

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.checkpoint import (
    GENERATION_CONFIG,
    TOKENIZER_FILES,
    Source,
    load_complete,
    read_json,
)
from dspark_compiler.frontend.quantized_folder import METHODS, QuantizedTensors, Scheme
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.frontend.tokenizer_files import OLDER_TOKENIZERS, write_tokenizer
from dspark_compiler.quantization.weight import QuantizedWeight

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# The form gpt-oss is published in; transformers reads it as plain numbers.
_READABLE_QUANTIZATION = "mxfp4"

_TOKENIZER_PARTS = ("merges.txt", "special_tokens_map.json", "added_tokens.json")

_WANTED_FROM_HUB = (
    "config.json",
    "*.safetensors",
    _INDEX,
    GENERATION_CONFIG,
    *TOKENIZER_FILES,
    *OLDER_TOKENIZERS,
    *_TOKENIZER_PARTS,
)


class FolderSource(Source):
    """A folder with ``config.json`` and safetensors weights.

    Raises:
        InputError: a file is missing, damaged or cut short.
        UnsupportedModelError: an architecture that cannot be compiled.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        config = read_config(path)
        settings = config.to_dict().get("quantization_config") or {}
        self._scheme = Scheme.of(settings, path) if settings.get("quant_method") in METHODS else None
        if self._scheme is not None:
            del config.quantization_config  # the weights are plain numbers once they are read
        _check_weights(path)
        super().__init__(name or path.resolve().name, path, config, read_generation_config(path))

    def load(self, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """The model of the folder's weights, quantized ones as plain numbers; see Source."""
        if self._scheme is not None:
            state = QuantizedTensors(self.path, self._scheme).state_dict()
            return load_complete(
                self.path, self.config, dtype, attention, pretrained_model_name_or_path=None, state_dict=state
            )
        where: dict[str, Any] = {"pretrained_model_name_or_path": str(self.path), "use_safetensors": True}
        if _quantization(self.config.to_dict()) is not None:
            where["quantization_config"] = Mxfp4Config(dequantize=True)
        return load_complete(self.path, self.config, dtype, attention, **where)

    def stored_weights(self, model: PreTrainedModel) -> dict[str, QuantizedWeight]:
        """See Source."""
        return {} if self._scheme is None else dict(QuantizedTensors(self.path, self._scheme).weights())

    def write_tokenizer(self, directory: Path) -> list[str]:
        """See Source."""
        return write_tokenizer(self.path, directory)


def download(repository: str) -> Path:
    """The folder of a hub model, fetched if it is not in the local cache yet.

    Raises:
        InputError: the hub has no such model, or cannot be reached.
    """
    try:
        with quiet():
            return Path(snapshot_download(repository, allow_patterns=list(_WANTED_FROM_HUB)))
    except HFValidationError as error:
        raise InputError(f"{repository}: no such file or folder, and not a hub id (owner/name)") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{repository}: no such folder here, and the hub cannot be reached; download the model first, or give a "
            "folder or .gguf file"
        ) from error
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: no such folder here, and the hub refuses it ({_first_line(error)})") from error
    except OSError as error:
        raise InputError(f"{repository}: the download failed ({_first_line(error)}); try again") from error


def read_config(path: Path) -> PretrainedConfig:
    """The configuration of a folder.

    Raises:
        InputError: there is none, or it is not valid.
        UnsupportedModelError: a model type transformers does not know, or weights quantized in a way that is not read.
    """
    file = path / "config.json"
    if not file.is_file():
        raise InputError(f"{path}: no config.json; give a Hugging Face model folder, a hub id or a .gguf file")
    content = read_json(file)
    model_type = content.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"{file}: model_type {model_type!r} is unknown to the installed transformers")
    method = _quantization(content)
    if method not in (None, _READABLE_QUANTIZATION, *METHODS):
        raise UnsupportedModelError(f"{file}: weights quantized with {method}; give the unquantized checkpoint")
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(path), local_files_only=True)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        # A validator's own error says what is wrong, the one raised only which validator it was.
        reason = _first_line(error.__cause__ or error)
        raise InputError(f"{file}: not a valid {model_type} config ({reason})") from error


def _quantization(config: Mapping[str, Any]) -> str | None:
    """The method the weights are quantized with, None if they are plain."""
    settings = config.get("quantization_config")
    return settings.get("quant_method", "an unnamed method") if settings else None


def read_generation_config(path: Path) -> GenerationConfig | None:
    """What a folder says of generating, None if it says nothing."""
    file = path / GENERATION_CONFIG
    return GenerationConfig.from_dict(read_json(file)) if file.is_file() else None


def _check_weights(path: Path) -> None:
    """Every weight file is there and whole, as far as its own header tells."""
    if (path / _INDEX).is_file():
        shards = sorted(set(read_json(path / _INDEX).get("weight_map", {}).values()))
        missing = [name for name in shards if not (path / name).is_file()]
        if missing or not shards:
            raise InputError(f"{path}: {', '.join(missing[:3]) or 'every shard'} is missing; fetch the model again")
    elif (path / _WEIGHTS).is_file():
        shards = [_WEIGHTS]
    elif any((path / name).is_file() for name in _PICKLED_WEIGHTS):
        raise InputError(f"{path}: weights only as pickled pytorch_model files; convert them to safetensors")
    else:
        raise InputError(f"{path}: a config without weights ({_WEIGHTS} or {_INDEX}); fetch the model again")
    for name in shards:
        _check_whole(path / name)


def _check_whole(file: Path) -> None:
    try:
        # Reading the header compares the length it states with the file's.
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, struct.error, OSError) as error:
        raise InputError(f"{file}: cut short or damaged ({_first_line(error)}); fetch the file again") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
