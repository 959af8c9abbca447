"""An ``.onnx`` file as a source."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.frontend.entries import program_of
from dspark_compiler.frontend.loaded import LoadedModel
from dspark_compiler.frontend.onnx.config import folder_of, settings_of
from dspark_compiler.frontend.onnx.file import read_model
from dspark_compiler.frontend.onnx.model import Decoder, decoder_of
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.frontend.tokenizer_files import write_tokenizer
from dspark_compiler.frontend.tracing import Traced
from dspark_compiler.graph.program import Program
from dspark_compiler.quantization.weight import QuantizedWeight


class OnnxSource(Source):
    """A decoder as ONNX, by torch.onnx, optimum, onnxruntime-genai or others.

    Raises:
        InputError: the file or what lies beside it is missing, damaged or cut short.
        UnsupportedModelError: not a decoder, or with an operator or a mask that cannot be compiled, by name.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        with quiet():
            self._decoder = decoder_of(read_model(path), path)
        settings = settings_of(path, self._decoder)
        self.name = name or path.stem
        self.path = path
        self.config = settings.config
        self.generation_config = settings.generation
        self._remarks = settings.remarks

    @property
    def remarks(self) -> tuple[str, ...]:
        """See Source."""
        return self._remarks

    def load_for_compile(self) -> "LoadedOnnx":
        """See Source; weights are read as they are captured."""
        return LoadedOnnx(self.path, self._decoder)

    def load(self, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """There is no such model; see Source.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.path}: an ONNX file cannot be run by transformers; give the Hugging Face folder")

    def write_tokenizer(self, directory: Path) -> list[str]:
        """See Source; the files beside the graph."""
        return write_tokenizer(folder_of(self.path), directory)


@dataclass(frozen=True)
class LoadedOnnx(LoadedModel):
    """A decoder and the file it came from."""

    path: Path
    decoder: Decoder

    def capture(self, config: CompileConfig) -> Program:
        """See LoadedModel."""
        return program_of(_TraceableOnnx(self.path.name, self.decoder), config)

    def stored_weights(self) -> dict[str, QuantizedWeight]:
        """See LoadedModel."""
        return self.decoder.stored_weights()


class _TraceableOnnx:
    """See Traceable."""

    def __init__(self, name: str, decoder: Decoder) -> None:
        self.name = name
        self.num_layers = decoder.layers
        self._decoder = decoder
        self._weights: dict[str, Tensor] = {}  # read once for all entry points, and held no longer than that

    @contextmanager
    def scope(self, config: CompileConfig) -> Iterator[None]:
        """See Traceable; what the file cannot do is told before anything is traced."""
        decoder = self._decoder
        if config.heads not in (None, NGRAM):
            raise UnsupportedModelError(
                f"{self.name}: heads read the outputs of layers, which an ONNX graph does not tell apart; give the "
                "Hugging Face folder, or --heads ngram"
            )
        batch = decoder.inputs.batch
        if batch is not None or decoder.shared_positions:
            why = (
                "all sequences of a call are at the same positions"
                if batch is None
                else f"takes exactly {batch} sequences"
            )
            if config.max_batch > 1 or batch not in (None, 1):
                raise UnsupportedModelError(
                    f"{self.name}: {why}; export it with a position_ids input and a dynamic axis for batch, or compile "
                    "with --max-batch 1"
                )
        if decoder.length is not None and (config.max_seq_len or 0) > decoder.length:
            raise UnsupportedModelError(
                f"{self.name}: its mask was proved for {decoder.length} tokens only; export it with past keys and "
                f"values, or compile with --max-seq-len {decoder.length}"
            )
        with quiet():
            yield
        self._weights.clear()

    def trace(self, batch: int, width: int) -> Traced:
        """See Traceable."""
        return self._decoder.trace(batch, width, self._weights)
