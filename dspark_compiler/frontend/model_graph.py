"""What a transformers model does with token ids and positions, as a graph of known shapes.

Its forward pass is traced for each entry point, with its weights as arguments. torch.export, which takes several times
as long, is asked only where that graph would not be one of functions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._export.utils import _compiling_state_context
from torch._ops import OpOverload
from torch.export import ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.func import functional_call
from transformers import PreTrainedModel

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.entries import INPUTS
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.frontend.tracing import Traced, trace
from dspark_compiler.frontend.writes import without_writes, writes

_aten = torch.ops.aten

# What export leaves behind to check itself.
_ASSERTIONS: frozenset[OpOverload] = frozenset(
    {_aten._assert_tensor_metadata.default, _aten._assert_scalar.default, _aten.sym_constrain_range_for_size.default}
)


def model_graph(model: PreTrainedModel, batch: int, width: int) -> Traced:
    """The graph for ``batch`` rows of ``width`` tokens: int64 [b,S] each to logits [b,S,V].

    Raises:
        UnsupportedModelError: the forward pass changes the model.
    """
    inputs = torch.zeros(batch, width, dtype=torch.int64), torch.arange(width).expand(batch, -1).contiguous()
    return _traced(model, inputs) or _exported(model, inputs)


class _OfWeights:
    """The model as a function of token ids, positions and its weights."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        self._orig_mod = model  # where torch looks for the modules that nodes belong to
        self._names = names

    def __call__(self, input_ids: Tensor, positions: Tensor, *weights: Tensor) -> tuple[Tensor]:
        named = dict(zip(self._names, weights, strict=True))
        return (functional_call(self._orig_mod, named, kwargs=_arguments(input_ids, positions)).logits,)


class _OfInputs(nn.Module):
    """The model as a function of token ids and positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.model(**_arguments(input_ids, positions)).logits
        return logits


def _arguments(input_ids: Tensor, positions: Tensor) -> dict[str, Any]:
    # With a padding mask at hand, transformers does not search positions for packed sequences.
    mask = torch.ones_like(input_ids)
    return {"input_ids": input_ids, "position_ids": positions, "attention_mask": mask, "use_cache": False}


def _traced(model: PreTrainedModel, inputs: tuple[Tensor, Tensor]) -> Traced | None:
    """The graph, unless the forward pass makes tensors of numbers or writes to one that others see."""
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    with quiet(), _compiling_state_context():  # in which models do not look at what tensors hold
        graph = trace(_OfWeights(model, list(weights)), [*inputs, *weights.values()])
    if graph.graph.find_nodes(op="get_attr") or not without_writes(graph.graph):
        return None
    tensors = ((name, weight.detach()) for name, weight in weights.items())
    return Traced(graph, (*((name, None) for name in INPUTS), *tensors))


def _exported(model: PreTrainedModel, inputs: tuple[Tensor, Tensor]) -> Traced:
    """The same by torch.export, which finds a function for everything or says why there is none."""
    with torch.no_grad(), quiet():
        exported = export(_OfInputs(model), inputs, strict=False)
        if any(writes(node) for node in exported.graph.nodes):
            exported = exported.run_decompositions({})  # leaves no operator that writes to its arguments
    outputs = exported.graph_signature.output_specs
    written = [_own_name(s.target) for s in outputs if s.kind is not OutputKind.USER_OUTPUT]
    if written:
        raise UnsupportedModelError(f"{type(model).__name__}: its forward pass writes to {', '.join(written)}")
    refs = _refs(model, exported)
    interpreter, given = fx.Interpreter(_without_assertions(exported.graph_module)), iter(inputs)
    graph = trace(lambda *values: interpreter.run(*values), [next(given) if t is None else t for _, t in refs])
    return Traced(graph, refs)


def _refs(model: nn.Module, exported: ExportedProgram) -> tuple[tuple[str, Tensor | None], ...]:
    """For each placeholder the name and tensor it stands for."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    first_name: dict[int, str] = {}
    for name, tensor in named.items():
        first_name.setdefault(id(tensor), name)
    refs: list[tuple[str, Tensor | None]] = []
    names = iter(INPUTS)
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            refs.append((next(names), None))
        elif spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
            refs.append((spec.target, exported.constants[spec.target]))
        else:
            tensor = named[_own_name(spec.target)]
            refs.append((first_name[id(tensor)], tensor.detach()))
    return tuple(refs)


def _own_name(target: str | None) -> str:
    """The model's name for what the wrapper calls ``model.<name>``."""
    return (target or "").removeprefix("model.")


def _without_assertions(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, values))
    for old, new in values.items():
        new.meta = dict(old.meta)
    for node in reversed(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
    return fx.GraphModule(module, graph)
