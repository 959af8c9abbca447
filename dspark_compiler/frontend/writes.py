"""Operators that write to their first operand become those that leave it as it is, where nobody can tell."""

import operator
from itertools import takewhile

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from dspark_compiler.graph.decompose import decompositions


def writes(node: fx.Node) -> bool:
    """Whether an operator writes to an operand."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def without_writes(graph: fx.Graph) -> bool:
    """Replaces the operators of a graph that write; False where one does that cannot be replaced."""
    return all(_replaced(graph, node) for node in list(graph.nodes) if writes(node))


def _replaced(graph: fx.Graph, node: fx.Node) -> bool:
    """Whether a node that writes was replaced: nothing else has the memory that it writes to.

    A tensor that is written to keeps its type, which one that is given new has only where all operands have it.
    """
    twin, written = _twin(node.target), node.args[0]
    if twin is None or not isinstance(written, fx.Node) or not _has_own_memory(written):
        return False
    earlier = set(takewhile(lambda other: other is not node, graph.nodes))
    if any(_is_view(user) for user in written.users if user in earlier):
        return False
    dtype = written.meta["val"].dtype
    operands = [value for n in node.all_input_nodes if isinstance(value := n.meta["val"], Tensor)]
    if not dtype.is_floating_point or any(value.dtype != dtype for value in operands):
        return False
    node.target = twin
    written.replace_all_uses_with(node, lambda user: user is not node and user not in earlier)
    return True


def _twin(target: object) -> OpOverload | None:
    """The operator that gives a new tensor: add for add_; none where that would have to be decomposed."""
    packet, _, overload = str(target).removeprefix("aten.").partition(".")
    if not packet.endswith("_"):
        return None
    twin = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
    return twin if isinstance(twin, OpOverload) and twin not in decompositions() else None


def _has_own_memory(node: fx.Node) -> bool:
    """Whether what a node gives is new, or the only view of what is."""
    while _is_view(node):
        sources = node.all_input_nodes
        if len(sources) != 1 or len(sources[0].users) != 1:
            return False
        node = sources[0]
    return True


def _is_view(node: fx.Node) -> bool:
    """Whether what a node gives may be memory of an operand."""
    if node.target is operator.getitem:
        source = node.args[0]
        return not isinstance(source, fx.Node) or _is_view(source)
    returns = node.target._schema.returns if isinstance(node.target, OpOverload) else None
    return returns is None or any(value.alias_info is not None for value in returns)
