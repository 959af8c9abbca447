"""Which tensor of the graph an attention's operand is, behind reshapes, swapped axes, repeated heads and a past.

Whether a chain of such operators is the one that is looked for is not guessed from their names: the chain is run on a
tensor that numbers its elements, and the result compared with what is wanted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.frontend.onnx.attention.found import PROBE_WIDTH, Probe
from dspark_compiler.frontend.onnx.evaluate import call, require
from dspark_compiler.frontend.onnx.graph import constant, insert

# Operators that only move elements of their first input.
_MOVES = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Identity", "Slice", "Tile"})
_PASSED = frozenset({"Cast", "Dropout"})


@dataclass(frozen=True)
class Step:
    """An operator on the way from a tensor to an operand, and which of its inputs lies on that way."""

    node: ir.Node
    place: int

    @property
    def source(self) -> ir.Value:
        """The tensor the step is taken from."""
        found = self.node.inputs[self.place]
        assert found is not None
        return found


@dataclass(frozen=True)
class Operand:
    """A tensor behind an operand: ``factor`` times it, heads repeated, is the operand."""

    value: ir.Value
    factor: float


def heads_of(
    probe: Probe, operand: ir.Value, *, swapped: bool = False, scaled: bool = True, repeated: bool = True
) -> Operand | None:
    """The tensor [b,G,S,D] furthest behind an operand [b,H,S,D], or [b*H,S,D]; None if there is none.

    Args:
        probe: the graph.
        operand: of a product of matrices.
        heads: H.
        swapped: the operand has its last two axes swapped.
        scaled: whether numbers that multiply it may lie on the way.
        repeated: whether G may be less than H.
    """
    shape = probe.shape(operand)
    heads = shape[1] if len(shape) == 4 else shape[0] // probe.batch

    def wanted(numbers: Tensor) -> Tensor:
        found = numbers.repeat_interleave(heads // numbers.shape[1], dim=1)
        return found.transpose(-1, -2) if swapped else found

    steps: list[Step] = []
    factor, candidate = 1.0, operand
    best: Operand | None = None
    tokens_first: Operand | None = None  # as [b,S,G,D]: taken where no other is
    for found in _way(operand, probe, scaled):
        if found is not None:
            steps.insert(0, found[0])
            factor *= found[1]
            candidate = found[0].source
        for swap in (False, True):
            numbers = _numbered(probe, probe.shape(candidate), heads, swap, repeated)
            if numbers is None or not _fits(probe, steps, numbers, wanted, swap):
                continue
            if swap:
                tokens_first = Operand(candidate, factor)
            else:
                best = Operand(candidate, factor)
    if best is None and tokens_first is not None:
        before = next(step.node for step in steps if step.source is tokens_first.value)
        heads_first = insert(before, "Transpose", [tokens_first.value], {"perm": [0, 2, 1, 3]})
        return Operand(heads_first, tokens_first.factor)
    return best


def vector_of(probe: Probe, operand: ir.Value, heads: int) -> ir.Value | None:
    """The tensor of H numbers behind an operand that has one for each head, [b,H,S,1] or broadcast to that."""

    def wanted(numbers: Tensor) -> Tensor:
        return numbers.view(1, heads, 1, 1).expand(probe.batch, heads, PROBE_WIDTH, 1)

    steps: list[Step] = []
    candidate, best = operand, None
    for found in _way(operand, probe, scaled=False):
        if found is not None:
            steps.insert(0, found[0])
            candidate = found[0].source
        shape = probe.shape(candidate)
        if torch.Size(shape).numel() == heads:
            moved = _moved(probe, steps, torch.arange(heads).view(shape))
            if moved.ndim == 4 and torch.equal(
                moved.expand(probe.batch, heads, PROBE_WIDTH, 1), wanted(torch.arange(heads))
            ):
                best = candidate
    if best is None:
        return None
    before = next(node for node in probe.graph if operand in node.inputs)
    return insert(before, "Reshape", [best, constant(probe.graph, [heads], "sinks_shape")])


def _way(operand: ir.Value, probe: Probe, scaled: bool) -> Iterator[tuple[Step, float] | None]:
    """None for the operand itself, then one step after the other away from it."""
    yield None
    value = operand
    while True:
        node = value.producer()
        if node is None:
            return
        found = _step(node, probe, scaled)
        if found is None:
            return
        yield found
        value = found[0].source


def _step(node: ir.Node, probe: Probe, scaled: bool) -> tuple[Step, float] | None:
    if node.op_type in _MOVES or node.op_type in _PASSED:
        return Step(node, 0), 1.0
    if node.op_type == "Concat":  # of a past, of which the probe has nothing
        pieces = [place for place, piece in enumerate(node.inputs) if piece is not None and probe[piece].numel()]
        return (Step(node, pieces[0]), 1.0) if len(pieces) == 1 else None
    if scaled and node.op_type in ("Mul", "Div"):
        left, right = (probe.number(value) for value in node.inputs)
        if right is not None:
            return Step(node, 0), right if node.op_type == "Mul" else 1 / right
        if left is not None and node.op_type == "Mul":
            return Step(node, 1), left
    return None


def _numbered(probe: Probe, shape: tuple[int, ...], heads: int, tokens_first: bool, repeated: bool) -> Tensor | None:
    """Numbers [b,G,S,D] for a tensor of that shape, if it can be one."""
    if len(shape) != 4 or shape[0] != probe.batch:
        return None
    groups, tokens = (shape[2], shape[1]) if tokens_first else (shape[1], shape[2])
    if tokens != PROBE_WIDTH or groups == 0 or heads % groups or (groups != heads and not repeated):
        return None
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    return numbers.transpose(1, 2) if tokens_first else numbers


def _fits(probe: Probe, steps: list[Step], numbers: Tensor, wanted: Callable[[Tensor], Tensor], swap: bool) -> bool:
    """Whether the steps make what is wanted of a tensor that numbers its elements."""
    moved = _moved(probe, steps, numbers.transpose(1, 2) if swap else numbers)
    goal = wanted(numbers)
    return moved.numel() == goal.numel() and torch.equal(moved.reshape(goal.shape), goal)


def _moved(probe: Probe, steps: list[Step], numbers: Tensor) -> Tensor:
    """What the steps make of numbers."""
    for step in steps:
        node = step.node
        if node.op_type in _PASSED or node.op_type in ("Mul", "Div"):
            continue
        inputs = [None if value is None else probe[value] for value in node.inputs]
        inputs = [torch.empty(x.shape, dtype=numbers.dtype) if x is not None and x.is_meta else x for x in inputs]
        inputs[step.place] = numbers
        (numbers,) = call(node, require(node), inputs)
    return numbers
