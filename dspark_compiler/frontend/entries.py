"""The entry points of a model that can be traced, whatever it came from."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.tracing import Traced
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role

INPUTS = ("input_ids", "positions")
OUTPUTS = ("logits",)


class Traceable(Protocol):
    """A cache-free decoder: token ids and positions, int64 [b,S] each, to logits [b,S,V]; ``name`` is for messages."""

    name: str
    num_layers: int

    def scope(self, config: CompileConfig) -> AbstractContextManager[None]:
        """Within, ``trace`` may be called; whatever has to be changed for it is as before afterwards."""

    def trace(self, batch: int, width: int) -> Traced:
        """The graph for ``batch`` rows of ``width`` tokens; inputs are called by the names in ``INPUTS``.

        Raises:
            UnsupportedModelError: names the module or operator that stopped it.
        """


@dataclass(frozen=True)
class EntryShape:
    """What an entry point is called with."""

    name: str
    kind: EntryKind
    batch: int
    width: int


def program_of(model: Traceable, config: CompileConfig) -> Program:
    """The entry points ``prefill_N``, ``decode`` and ``verify_N`` of ``model``.

    Raises:
        UnsupportedModelError: names the module or operator that stopped the capture; the cause is chained.
    """
    program = Program(entries={}, params={})
    with model.scope(config):
        for shape in entry_shapes(config):
            program.entries[shape.name] = _entry(model.trace(shape.batch, shape.width), shape, program.params)
    for entry in program.entries.values():
        _check_layers(model, entry)
    return program


def entry_shapes(config: CompileConfig) -> list[EntryShape]:
    """The entry points a compile asks of a front end, in order."""
    prefills = [EntryShape(f"prefill_{n}", EntryKind.PREFILL, 1, n) for n in sorted(set(config.chunk_widths))]
    return [
        *prefills,
        EntryShape("decode", EntryKind.DECODE, config.max_batch, 1),
        *(EntryShape(f"verify_{n}", EntryKind.VERIFY, config.max_batch, n) for n in config.verify_widths),
    ]


def _entry(traced: Traced, shape: EntryShape, params: dict[str, Tensor]) -> EntryPoint:
    """The entry point of ``shape``; the tensors it uses are added to ``params``."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    pairs = list(zip(placeholders, traced.refs, strict=True))
    # Inputs first, and no weight that nothing reads.
    for old, (ref, tensor) in sorted(pairs, key=lambda pair: pair[1][1] is not None):
        if tensor is not None and not old.users:
            continue
        if tensor is not None:
            ref = _add_param(params, ref, tensor, shape.name)
        new = graph.placeholder(ref.replace(".", "_"))
        new.meta.update(role=Role.INPUT if tensor is None else Role.PARAM, ref=ref, val=old.meta["val"])
        values[old] = new
    for old in traced.graph.graph.nodes:
        if old.op == "call_function":
            values[old] = graph.node_copy(old, values.__getitem__)
        elif old.op == "output":
            graph.output(tuple(values[n] for n in old.args[0]))
        elif old.op != "placeholder":
            raise UnsupportedModelError(f"{shape.name}: {old.op} {old.target} ({_module_of(old)}) is not an operator")
    return EntryPoint(shape.name, shape.kind, shape.batch, shape.width, fx.GraphModule(nn.Module(), graph), OUTPUTS)


def _add_param(params: dict[str, Tensor], ref: str, tensor: Tensor, entry: str) -> str:
    """Adds ``tensor`` under ``ref``, or under a name of the entry's own where traces differ in a constant."""
    known = params.setdefault(ref, tensor)
    if known is tensor or (known.shape == tensor.shape and torch.equal(known, tensor)):
        return ref
    params[own := f"{entry}.{ref}"] = tensor
    return own


def _check_layers(model: Traceable, entry: EntryPoint) -> None:
    """Refuses a model whose layers remember a sequence in another way than by keys and values."""
    nodes = entry.graph.graph.find_nodes(op="call_function", target=torch.ops.dspark.attention.default)
    layers = sorted(n.args[3] for n in nodes)
    if layers == list(range(model.num_layers)):
        return
    missing = sorted(set(range(model.num_layers)) - set(layers))
    what = f"layers {missing[:4]} call no attention" if missing else "a layer calls attention twice"
    raise UnsupportedModelError(
        f"{model.name}: {what}; only models whose every layer attends once can be given a cache"
    )


def _module_of(node: fx.Node) -> str:
    """The module a node was traced in, as far as it is known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else "unknown module"
