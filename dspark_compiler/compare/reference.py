"""What an artifact is judged by: the source model's logits, from who is at home with its form. V: vocabulary."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dspark_compiler.compare.eager import eager_logits
from dspark_compiler.frontend.loaded import LoadedModel, LoadedTransformers
from dspark_compiler.frontend.onnx.source import LoadedOnnx


class Reference(Protocol):
    """``exact`` says whether it computes in float32 throughout, so that equal tokens may be asked for."""

    name: str
    exact: bool

    def logits(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """The logits after each token from index ``first`` on, in chunks [n, V]; every token is given."""


class Eager:
    """A transformers model."""

    name = "eager"
    exact = True

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def logits(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See Reference."""
        return eager_logits(self._model, tokens, first)


def reference_of(model: LoadedModel) -> Reference:
    """The reference for a source's model.

    Raises:
        InputError: an ONNX file that ONNX Runtime cannot run.
    """
    if isinstance(model, LoadedOnnx):
        from dspark_compiler.compare.onnx_reference import OnnxReference

        return OnnxReference(model)
    assert isinstance(model, LoadedTransformers)
    return Eager(model.module)
