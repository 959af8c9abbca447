"""Reading FX nodes: what converters and matchers need of them."""

from typing import Any

from torch import fx


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """Positional arguments; what each is the operator's schema says, FX's own type only that it may be anything."""
    return node.args


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node that yields one tensor."""
    return tuple(int(extent) for extent in node.meta["val"].shape)
