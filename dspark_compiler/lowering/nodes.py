"""Reading FX nodes: what converters and matchers need of them."""

from typing import Any

from torch import fx
from torch._ops import OpOverload


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """Positional arguments; what each is the operator's schema says, FX's own type only that it may be anything."""
    return node.args


def bound_args(node: fx.Node) -> dict[str, Any]:
    """Argument name -> node or constant of an operator call, defaults filled in from the operator's schema."""
    target = node.target
    assert isinstance(target, OpOverload), f"{node.name}: {target} has no schema"
    schema = target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def effects(node: fx.Node) -> list[fx.Node]:
    """What an operator writes that returns nothing, and so would be taken for dead; nothing for any other operator."""
    target = node.target
    if not isinstance(target, OpOverload) or target._schema.returns:
        return []
    given = bound_args(node)
    written = [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [given[name] for name in written if given[name] is not None]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node that yields one tensor."""
    return tuple(int(extent) for extent in node.meta["val"].shape)
