"""Reading FX nodes: what converters and matchers need of them."""

from typing import Any

from torch import fx
from torch._ops import OpOverload

from dspark_compiler.graph.rewrite import bound_args


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """Positional arguments; what each is the operator's schema says, FX's own type only that it may be anything."""
    return node.args


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node that yields one tensor."""
    return tuple(int(extent) for extent in node.meta["val"].shape)


def tensor_args(node: fx.Node) -> dict[str, fx.Node]:
    """The arguments that are nodes, those that are left out or None not among them."""
    return {name: value for name, value in bound_args(node).items() if isinstance(value, fx.Node)}


def written_args(node: fx.Node) -> tuple[int, ...]:
    """Places among ``tensor_args`` of those the operator writes."""
    assert isinstance(node.target, OpOverload)
    schema = node.target._schema.arguments
    written = {a.name for a in schema if a.alias_info is not None and a.alias_info.is_write}
    return tuple(i for i, name in enumerate(tensor_args(node)) if name in written)


def effects(node: fx.Node) -> list[fx.Node]:
    """What an operator writes that returns nothing, and so would be taken for dead; nothing for any other operator."""
    if not isinstance(node.target, OpOverload) or node.target._schema.returns:
        return []
    tensors = list(tensor_args(node).values())
    return [tensors[i] for i in written_args(node)]


def identifier(name: str) -> str:
    """``name`` with what no function may be called replaced."""
    return "".join(c if c.isalnum() else "_" for c in name)
