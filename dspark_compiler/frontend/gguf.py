"""A ``.gguf`` file, read through transformers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend import gguf_weights
from dspark_compiler.frontend.checkpoint import Source, convert_tokenizer, load_complete
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.quantization.weight import QuantizedWeight

_MAGIC = b"GGUF"
_TOKENIZER_MODEL = "tokenizer.ggml.model"

# Long lists of strings that only the tokenizer needs.
_VOCABULARY = ("tokens", "scores", "token_type", "merges")


class GgufSource(Source):
    """A GGUF file; quantized weights are read as the numbers they stand for.

    Raises:
        InputError: not a GGUF file, cut short, or with tensors of a type that cannot be read.
        UnsupportedModelError: an architecture transformers has no GGUF mapping for.
    """

    def __init__(self, path: Path) -> None:
        self._reader = _open(path)
        _check_types(path, self._reader)
        super().__init__(path.stem, path, self._config(path), None)

    def load(self, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """The model of the file's weights, quantized ones as plain numbers; see Source."""
        fields = self._reader.fields
        kept = {key: fields.pop(f"tokenizer.ggml.{key}", None) for key in _VOCABULARY}
        try:
            with _parsed_once(self._reader):
                model = load_complete(self.path, self.config, dtype, attention, **self._where())
        finally:
            fields.update({f"tokenizer.ggml.{key}": field for key, field in kept.items() if field is not None})
        # The weights are plain numbers now, whatever transformers remembers of their origin.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        return model

    def stored_weights(self, model: PreTrainedModel) -> dict[str, QuantizedWeight]:
        """See Source."""
        return gguf_weights.stored_weights(self._reader, model)

    def write_tokenizer(self, directory: Path) -> list[str]:
        """Converts the vocabulary, merges and chat template the file holds."""
        if _TOKENIZER_MODEL not in self._reader.fields:
            return []
        with _parsed_once(self._reader):
            return convert_tokenizer(directory, **self._where())

    def _where(self) -> dict[str, Any]:
        return {"pretrained_model_name_or_path": str(self.path.parent), "gguf_file": self.path.name}

    def _config(self, path: Path) -> PretrainedConfig:
        try:
            with quiet(), _parsed_once(self._reader):
                config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
        except (ValueError, KeyError, IndexError) as error:
            named = self._reader.get_field("general.architecture")
            architecture = "of an unnamed architecture" if named is None else repr(str(named.contents()))
            raise UnsupportedModelError(
                f"{path}: architecture {architecture} cannot be read from GGUF ({error}); give the Hugging Face folder"
            ) from error
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config


class _Reader(gguf.GGUFReader):  # type: ignore[misc]  # its package has no types
    """Reads fields from a plain array: a vocabulary is some 100,000 slices, and those of a memory map are dear."""

    data: NDArray[Any]

    def _build_fields(self, offs: int, count: int) -> int:
        self.data = self.data.view(np.ndarray)
        return int(super()._build_fields(offs, count))


def _open(path: Path) -> gguf.GGUFReader:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path}: not a GGUF file; give a GGUF file or a Hugging Face model folder")
    try:
        return _Reader(path)
    except (ValueError, IndexError, KeyError, TypeError, OSError, UnicodeDecodeError) as error:
        if gguf.GGMLQuantizationType.__name__ in str(error):
            raise InputError(f"{path}: a tensor has a type this version of gguf does not know ({error})") from error
        raise InputError(f"{path}: cut short or damaged ({error}); fetch the file again") from error


def _check_types(path: Path, reader: gguf.GGUFReader) -> None:
    """Each type of tensor in the file must be one that can be turned into floats."""
    first: dict[gguf.GGMLQuantizationType, str] = {}
    for tensor in reader.tensors:
        first.setdefault(tensor.tensor_type, tensor.name)
    for kind, name in first.items():
        _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros(block_bytes, dtype=np.uint8), kind)
        except NotImplementedError as error:
            raise InputError(
                f"{path}: tensor {name} has type {kind.name}, which cannot be read; give a file in another quantization"
            ) from error


@contextmanager
def _parsed_once(reader: gguf.GGUFReader) -> Iterator[None]:
    """Within, transformers finds the file parsed already and each table of names built once.

    It opens the file anew for the config, the weights and the tokenizer, and asks for the table of names of an
    architecture once a module: ten seconds for a model of 30 layers.
    """

    def reuse(path: object, *arguments: object) -> gguf.GGUFReader:
        return reader

    with _replaced("GGUFReader", reuse), _replaced("get_tensor_name_map", cache(gguf.get_tensor_name_map)):
        yield


@contextmanager
def _replaced(name: str, value: Callable[..., Any]) -> Iterator[None]:
    former = getattr(gguf, name)
    setattr(gguf, name, value)
    try:
        yield
    finally:
        setattr(gguf, name, former)
