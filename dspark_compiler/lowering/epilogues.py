"""Finds what a linear kernel can do before it stores: add the residual, or gate one half of its output by the other."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, shape_of

_aten = torch.ops.aten


@dataclass(frozen=True)
class Residual:
    """add(residual, linear): ``linear`` stores its sums plus ``residual``."""

    linear: fx.Node
    residual: fx.Node


@dataclass(frozen=True)
class Gate:
    """mul(act(linear[..., :I]), linear[..., I:])."""

    linear: fx.Node
    activation: str


@dataclass
class Epilogues:
    """The last node of each match, and the nodes it makes needless.

    Values in ``eighths`` are handed over as the target's linears of few rows round them (schedules/simt/eighths.py).
    """

    matches: dict[fx.Node, Residual | Gate] = field(default_factory=dict)
    absorbed: set[fx.Node] = field(default_factory=set)
    eighths: set[fx.Node] = field(default_factory=set)


def find_epilogues(entry: EntryPoint, plan: LayoutPlan) -> Epilogues:
    """All matches of an entry point; a node belongs to one at most."""
    found = Epilogues()
    for node in entry.graph.graph.nodes:
        if node.target is _aten.mul.Tensor:
            _match_gate(node, plan, found)
        elif node.target is _aten.add.Tensor and not node.kwargs:
            _match_residual(node, plan, found)
    return found


def _match_residual(node: fx.Node, plan: LayoutPlan, found: Epilogues) -> None:
    for linear, residual in _either_way(node):
        if not (_is_packed(linear, plan) and len(linear.users) == 1 and isinstance(residual, fx.Node)):
            continue
        if shape_of(residual) == shape_of(linear) == shape_of(node) and linear not in found.absorbed:
            found.matches[node] = Residual(linear, residual)
            found.absorbed.add(linear)
            return


def _match_gate(node: fx.Node, plan: LayoutPlan, found: Epilogues) -> None:
    for activated, up in _either_way(node):
        name = _activation(activated)
        if name is None or not _is_slice(up):
            continue
        gate, linear = activated.args[0], up.args[0]
        if not (_is_slice(gate) and gate.args[0] is linear and _is_packed(linear, plan, biased=False)):
            continue
        half = shape_of(node)[-1]
        private = set(linear.users) == {gate, up} and all(len(n.users) == 1 for n in (activated, gate, up))
        halves = _bounds(gate) == (0, half) and _bounds(up) == (half, 2 * half) and shape_of(linear)[-1] == 2 * half
        if private and halves and plan.layouts.can_gate(half):
            found.matches[node] = Gate(linear, name)
            found.absorbed |= {linear, gate, up, activated}
            return


def _either_way(node: fx.Node) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The two operands of a commutative operator, in both orders."""
    first, second = args_of(node)
    return (first, second), (second, first)


def _activation(node: Any) -> str | None:
    if not isinstance(node, fx.Node):
        return None
    if node.target is _aten.silu.default:
        return "silu"
    if node.target is _aten.gelu.default and node.kwargs.get("approximate") == "tanh":
        return "gelu_tanh"
    return None


def _is_packed(node: Any, plan: LayoutPlan, *, biased: bool = True) -> bool:
    """Whether a node is a linear over a packed weight; with a bias only if it may be ``biased``."""
    call = LinearCall.of(node)
    return call is not None and (biased or call.bias is None) and plan.is_packed(call.weight)


def _is_slice(node: Any) -> bool:
    """Whether a node takes every element of a stretch of the last axis."""
    if not isinstance(node, fx.Node) or node.target is not _aten.slice.Tensor:
        return False
    x, dim, _, _, step = _slice_args(node)
    return dim in (-1, len(shape_of(x)) - 1) and step == 1


def _bounds(node: fx.Node) -> tuple[int, int]:
    x, _, start, end, _ = _slice_args(node)
    size = shape_of(x)[-1]
    return start or 0, size if end is None else min(end, size)


def _slice_args(node: fx.Node) -> tuple[Any, ...]:
    """aten.slice's x, dim, start, end, step, defaults filled in."""
    given = args_of(node)
    return (*given, *(None, 0, None, None, 1)[len(given) :])
