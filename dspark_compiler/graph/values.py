"""Shapes and types of node results: reading them, and working them out anew after a rewrite.

Values are kept in ``node.meta["val"]``: a tensor without data (fake or meta), a tuple of them, or None.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dspark_compiler.graph.program import TensorSpec


def as_meta(value: Any) -> Any:
    """The same value on the meta device: tensors lose their data and keep shape, strides and type."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")

    return pytree.tree_map(one, value)


def spec_of(node: fx.Node) -> TensorSpec:
    """Shape and type of a node that yields one tensor.

    Raises:
        TypeError: the node yields something else.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise TypeError(f"{node.name}: yields {type(value).__name__}, not a tensor")
    return TensorSpec(tuple(value.shape), value.dtype)


def _key(argument: Any) -> Hashable:
    """What inference depends on: nodes by their values, everything else as it is."""
    if isinstance(argument, fx.Node):
        return ("node", _key(argument.meta["val"]))
    if isinstance(argument, Tensor):
        return (tuple(argument.shape), argument.stride(), argument.dtype)
    if isinstance(argument, tuple | list):
        return tuple(_key(a) for a in argument)
    if isinstance(argument, dict):
        return tuple((name, _key(a)) for name, a in argument.items())
    return (type(argument), argument) if isinstance(argument, Hashable) else repr(argument)


# What was worked out in this process: layers repeat each other, and programs those compiled before. Not by lru_cache,
# which would keep nodes, and with them whole graphs.
_known: dict[Hashable, Any] = {}
_MOST_KNOWN = 1 << 14


def infer(node: fx.Node) -> Any:
    """The value of a ``call_function`` node, from the values of its arguments.

    Raises:
        RuntimeError, TypeError, ValueError, IndexError: the operator rejects its arguments.
    """
    key = (node.target, _key(node.args), _key(node.kwargs))
    if key not in _known:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = _run_on_meta(node)
    return _known[key]


def _run_on_meta(node: fx.Node) -> Any:
    assert callable(node.target), f"{node.name}: {node.op} has no operator to run"
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: as_meta(n.meta["val"]))
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("meta")
    with torch.no_grad():
        return as_meta(node.target(*args, **kwargs))
