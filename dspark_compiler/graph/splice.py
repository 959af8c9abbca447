"""Plain torch code becomes nodes of an entry point's graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from dspark_compiler.graph.decompose import decompositions
from dspark_compiler.graph.rewrite import emit


def splice(before: fx.Node, function: Callable[..., Any], arguments: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """Runs ``function`` on values shaped like ``arguments`` and puts its operators in front of ``before``.

    It must not branch on values. Returns the nodes of the tensors it returns: none, one, or a sequence of them.
    """
    examples = [torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype) for node in arguments]

    def run(*values: Tensor) -> list[Tensor]:
        result = function(*values)
        if result is None:
            return []
        return [result] if isinstance(result, Tensor) else list(result)

    with torch.no_grad():
        traced = make_fx(
            run,
            decomposition_table=decompositions(),
            tracing_mode="fake",
            pre_dispatch=True,
            _allow_non_fake_inputs=True,
        )(*examples)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    values: dict[fx.Node, fx.Node] = dict(zip(placeholders, arguments, strict=True))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = emit(before, node.target, args, dict(kwargs))
        elif node.op == "output":
            return tuple(values[result] for result in node.args[0])
    return ()
