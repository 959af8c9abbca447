"""A transformers causal language model becomes a cache-free ``Program``."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from transformers import PreTrainedModel

from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.entries import INPUTS, program_of
from dspark_compiler.frontend.layers import marked_layers
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.frontend.retrace import Traced, retrace
from dspark_compiler.frontend.rope import settled_rope
from dspark_compiler.frontend.seam import seam
from dspark_compiler.graph.program import Program
from dspark_compiler.models import family_of

# Lengths to export with: not 1, which torch takes for a constant, and unlike each other.
_EXAMPLE_BATCH, _EXAMPLE_WIDTH = 2, 7

# The kinds of layer, in transformers' words, that a cache of keys and values serves.
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

# What a model's own code and torch.export raise on a model that cannot be traced.
_CAPTURE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)


@dataclass(frozen=True)
class _Captured:
    """An exported graph, and what each of its placeholders stands for: a name, and the tensor if not an input."""

    exported: ExportedProgram
    refs: tuple[tuple[str, Tensor | None], ...]

    def fits(self, batch: int, width: int) -> bool:
        """Whether every choice the model's code made while it was exported holds for these lengths too."""
        first_input = self.exported.graph_signature.user_inputs[0]
        sizes = next(n for n in self.exported.graph.nodes if n.name == first_input).meta["val"].shape
        lengths = {}
        for size, length in zip(sizes, (batch, width), strict=True):
            if not isinstance(size, torch.SymInt):
                if size != length:
                    return False
                continue
            lengths[size.node.expr] = length
        guards = [g.expr for size in sizes if isinstance(size, torch.SymInt) for g in size.node.shape_env.guards]
        # Guards over other symbols only say that both inputs have the same sizes.
        return all(bool(g.subs(lengths)) for g in guards if g.free_symbols <= lengths.keys())


class _CacheFree(nn.Module):
    """The model as a function of token ids and positions, int64 [b,S] each, to logits [b,S,V]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        # With a padding mask at hand, transformers does not search positions for packed sequences.
        mask = torch.ones_like(input_ids)
        out = self.model(input_ids=input_ids, position_ids=positions, attention_mask=mask, use_cache=False)
        logits: Tensor = out.logits
        return logits


def capture(model: PreTrainedModel, config: CompileConfig) -> Program:
    """The entry points ``prefill_N``, ``decode`` and ``verify_N`` of ``model``, which is left as it was.

    Parameters and buffers go by their names in ``model``; tied ones share the first of their names. With decode heads
    the outputs of decoder layers are marked.

    Raises:
        UnsupportedModelError: names the module or operator that stopped the capture; the cause is chained.
    """
    return program_of(_Transformers(model), config)


class _Transformers:
    """See Traceable. Exported once with both lengths left open, and again only for lengths that do not fit that."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._text = model.config.get_text_config()
        self._open: _Captured | None = None
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
            self._open = _export(model, _EXAMPLE_BATCH, _EXAMPLE_WIDTH, open_lengths=True)
            yield

    def trace(self, batch: int, width: int) -> Traced:
        """See Traceable."""
        fitting = self._open
        if fitting is None or not fitting.fits(batch, width):  # a family that takes a length for a constant
            fitting = _export(self._model, batch, width, open_lengths=False)
        example = torch.zeros(batch, width, dtype=torch.int64)
        graph = retrace(fitting.exported, [example if t is None else t for _, t in fitting.refs])
        return Traced(graph, fitting.refs)


def _export(model: PreTrainedModel, batch: int, width: int, *, open_lengths: bool) -> _Captured:
    ids = torch.zeros(batch, width, dtype=torch.int64)
    positions = torch.arange(width).expand(batch, -1).contiguous()
    lengths = {0: Dim.AUTO, 1: Dim.AUTO} if open_lengths else {}
    with torch.no_grad(), quiet():
        exported = export(_CacheFree(model), (ids, positions), dynamic_shapes=(lengths, lengths), strict=False)
        if any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in exported.graph.nodes):
            exported = exported.run_decompositions({})  # leaves no operator that writes to its arguments
    outputs = exported.graph_signature.output_specs
    written = [_own_name(s.target) for s in outputs if s.kind is not OutputKind.USER_OUTPUT]
    if written:
        raise UnsupportedModelError(f"{type(model).__name__}: its forward pass writes to {', '.join(written)}")
    return _Captured(exported, _refs(model, exported))


def _refs(model: nn.Module, exported: ExportedProgram) -> tuple[tuple[str, Tensor | None], ...]:
    """For each placeholder the name and tensor it stands for."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    first_name: dict[int, str] = {}
    for name, tensor in named.items():
        first_name.setdefault(id(tensor), name)
    refs: list[tuple[str, Tensor | None]] = []
    inputs = iter(INPUTS)
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            refs.append((next(inputs), None))
        elif spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
            refs.append((spec.target, exported.constants[spec.target]))
        else:
            tensor = named[_own_name(spec.target)]
            refs.append((first_name[id(tensor)], tensor.detach()))
    return tuple(refs)


def _own_name(target: str | None) -> str:
    """The model's name for what the wrapper calls ``model.<name>``."""
    return (target or "").removeprefix("model.")


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
