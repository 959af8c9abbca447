"""A transformers causal language model becomes a cache-free ``Program``."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import nn
from transformers import PreTrainedModel

from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.entries import program_of
from dspark_compiler.frontend.layers import marked_layers
from dspark_compiler.frontend.model_graph import model_graph
from dspark_compiler.frontend.rope import settled_rope
from dspark_compiler.frontend.seam import seam
from dspark_compiler.frontend.tracing import Traced
from dspark_compiler.graph.program import Program
from dspark_compiler.models import family_of

# The kinds of layer, in transformers' words, that a cache of keys and values serves.
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

# What a model's own code and torch.export raise on a model that cannot be traced.
_CAPTURE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)


def capture(model: PreTrainedModel, config: CompileConfig) -> Program:
    """The entry points ``prefill_N``, ``decode`` and ``verify_N`` of ``model``, which is left as it was.

    Parameters and buffers go by their names in ``model``; tied ones share the first of their names. With decode heads
    the outputs of decoder layers are marked.

    Raises:
        UnsupportedModelError: names the module or operator that stopped the capture; the cause is chained.
    """
    return program_of(_Transformers(model), config)


class _Transformers:
    """See Traceable."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._text = model.config.get_text_config()
        self.name = type(model).__name__
        self.num_layers = int(self._text.num_hidden_layers)

    @contextmanager
    def scope(self, config: CompileConfig) -> Iterator[None]:
        """See Traceable."""
        model = self._model
        _check_layer_types(model, getattr(self._text, "layer_types", None) or ())
        max_seq_len = config.max_seq_len or self._text.max_position_embeddings
        marks = nullcontext() if config.heads in (None, NGRAM) else marked_layers(model)
        family = family_of(model.config.model_type)
        with _named_failure(model), seam(model, family), settled_rope(model, max_seq_len), marks:
            yield

    def trace(self, batch: int, width: int) -> Traced:
        """See Traceable."""
        return model_graph(self._model, batch, width)


def _check_layer_types(model: nn.Module, layer_types: Sequence[str]) -> None:
    foreign = sorted(set(layer_types) - _LAYER_TYPES)
    if foreign:
        layer = next(i for i, kind in enumerate(layer_types) if kind in foreign)
        raise UnsupportedModelError(
            f"{type(model).__name__}: layer {layer} is of type {layer_types[layer]}; "
            f"only {', '.join(sorted(_LAYER_TYPES))} layers can be compiled"
        )


@contextmanager
def _named_failure(model: nn.Module) -> Iterator[None]:
    """Turns what tracing raises into one line that names the module it came from."""
    try:
        yield
    except _CAPTURE_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"{_failed_module(model, error)}: cannot be captured ({type(error).__name__}: {reason[0]})"
        ) from error


def _failed_module(model: nn.Module, error: BaseException) -> str:
    """The innermost module of ``model`` on the error's traceback, as ``name (class)``."""
    names = {id(module): name for name, module in model.named_modules()}
    found = type(model).__name__
    link: BaseException | None = error
    while link is not None:
        for frame, _ in traceback.walk_tb(link.__traceback__):
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and names.get(id(owner)):
                found = f"{names[id(owner)]} ({type(owner).__name__})"
        link = link.__cause__ or link.__context__
    return found
