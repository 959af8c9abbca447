"""What is computed becomes a graph of known shapes in core operators, all but those that lowering wants whole."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from dspark_compiler.graph.decompose import decompositions


@dataclass(frozen=True)
class Traced:
    """A graph of known shapes, and what each of its placeholders stands for: a name, and the tensor if not an input."""

    graph: fx.GraphModule
    refs: tuple[tuple[str, Tensor | None], ...]


def trace(function: Callable[..., Any], arguments: Sequence[Tensor]) -> fx.GraphModule:
    """What ``function`` does with ``arguments``, one a placeholder; only their shapes and types count.

    The result has static shapes, core operators and those in ``WHOLE``; ``meta["val"]`` are tensors without data.
    Nodes have a ``nn_module_stack``: within the function's ``_orig_mod``, or that of the nodes it runs.
    """
    own_modules = hasattr(function, "_orig_mod")  # else nodes keep the modules of those whose work is traced
    with torch.no_grad(), fx.traceback.preserve_node_meta(not own_modules), _no_stack_traces():
        traced = make_fx(
            function,
            decomposition_table=decompositions(),
            tracing_mode="fake",
            pre_dispatch=True,
            record_module_stack=True,
            _allow_non_fake_inputs=True,
        )(*(a.detach() for a in arguments))  # one object each: equal ones would become one placeholder
    traced.graph.eliminate_dead_code()
    for node in traced.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map_only(Tensor, _without_data, node.meta["val"])
    return traced


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Within, torch notes of no node which lines of Python it comes from: a third of a trace, and nobody reads them."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before


def _without_data(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
