"""An exported graph of unknown batch and width becomes one of known shapes in core operators.

torch.export is the dear part of capture, so it runs once with both lengths left open; every entry point then replays
its graph with its own lengths. The replay also decomposes, all but the operators that lowering wants whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

_aten = torch.ops.aten

# Operators with a good kernel of their own, whose decomposition would only have to be recognised again.
WHOLE: frozenset[OpOverload] = frozenset(
    {
        _aten.linear.default,
        _aten.layer_norm.default,
        _aten.silu.default,
        _aten.gelu.default,
        _aten.softmax.int,
        _aten.embedding.default,
    }
)

_NO_OPS: frozenset[OpOverload] = frozenset({_aten.alias.default, _aten.detach.default})

# What export leaves behind to check itself.
_ASSERTIONS: frozenset[OpOverload] = frozenset(
    {_aten._assert_tensor_metadata.default, _aten._assert_scalar.default, _aten.sym_constrain_range_for_size.default}
)


def retrace(exported: ExportedProgram, arguments: Sequence[Tensor]) -> fx.GraphModule:
    """Replays ``exported`` on ``arguments``, one a placeholder; only their shapes and types count.

    The result has the same placeholders, all shapes static, core operators and those in ``WHOLE``. Nodes keep
    ``nn_module_stack`` and ``stack_trace``; ``meta["val"]`` are tensors without data.
    """
    source = _without_assertions(exported.graph_module)
    interpreter = fx.Interpreter(source)
    with torch.no_grad(), fx.traceback.preserve_node_meta():
        traced = make_fx(
            lambda *values: interpreter.run(*values),
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


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """The core decompositions and those of all composite operators, less the operators in ``WHOLE``."""
    table: dict[OpOverload, Callable[..., Any]] = dict(default_decompositions().items())  # type: ignore[no-untyped-call]
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"):
        namespace, _, operator = name.partition("::")
        packet, _, overload = operator.partition(".")
        found = getattr(getattr(_aten, packet, None), overload or "default", None) if namespace == "aten" else None
        if isinstance(found, OpOverload):
            table.setdefault(found, found.decompose)
    table |= dict.fromkeys(_NO_OPS, lambda value: value)
    return {op: rule for op, rule in table.items() if op not in WHOLE}


def _without_data(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
