"""An exported graph of unknown batch and width becomes one of known shapes in core operators.

torch.export is the dear part of capture, so it runs once with both lengths left open; every entry point then replays
its graph with its own lengths. The replay also decomposes, all but the operators that lowering wants whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from dspark_compiler.graph.decompose import decompositions

_aten = torch.ops.aten

# What export leaves behind to check itself.
_ASSERTIONS: frozenset[OpOverload] = frozenset(
    {_aten._assert_tensor_metadata.default, _aten._assert_scalar.default, _aten.sym_constrain_range_for_size.default}
)


@dataclass(frozen=True)
class Traced:
    """A graph of known shapes, and what each of its placeholders stands for: a name, and the tensor if not an input."""

    graph: fx.GraphModule
    refs: tuple[tuple[str, Tensor | None], ...]


def retrace(exported: ExportedProgram, arguments: Sequence[Tensor]) -> fx.GraphModule:
    """Replays ``exported`` on ``arguments``, one a placeholder; see ``trace``. Nodes keep ``nn_module_stack``."""
    interpreter = fx.Interpreter(_without_assertions(exported.graph_module))
    return trace(lambda *values: interpreter.run(*values), arguments)


def trace(function: Callable[..., Any], arguments: Sequence[Tensor]) -> fx.GraphModule:
    """What ``function`` does with ``arguments``, one a placeholder; only their shapes and types count.

    The result has static shapes, core operators and those in ``WHOLE``; ``meta["val"]`` are tensors without data.
    """
    with torch.no_grad(), fx.traceback.preserve_node_meta():
        traced = make_fx(
            function,
            decomposition_table=decompositions(),
            tracing_mode="fake",
            pre_dispatch=True,
            _allow_non_fake_inputs=True,
        )(*(a.detach() for a in arguments))  # one object each: equal ones would become one placeholder
    traced.graph.eliminate_dead_code()
    for node in traced.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map_only(Tensor, _without_data, node.meta["val"])
    return traced


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


def _without_data(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
