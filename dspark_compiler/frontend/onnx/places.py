"""Proves that nothing in a rewritten graph depends on where its tokens stand, but through ``positions``.

Values that depend neither on token ids nor on ``positions`` are worked out for several numbers of new and past tokens.
Where they meet what does depend on tokens, they have to be the same each time.
"""

from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.inputs import Inputs
from dspark_compiler.frontend.onnx.operators import OPERATORS, SHAPES_ONLY, operator_of
from dspark_compiler.frontend.onnx.operators.base import named
from dspark_compiler.frontend.onnx.positions import Call, worked_out

_FEW, _MORE, _AFTER = Call(2, 7, 0), Call(2, 11, 0), Call(2, 7, 5)


def require_places_do_not_matter(graph: ir.Graph, inputs: Inputs, positions: ir.Value) -> None:
    """Raises UnsupportedModelError, naming the node, where a value follows from the number of new or past tokens."""
    few, more = (worked_out(graph, inputs, positions, call) for call in (_FEW.within(inputs), _MORE.within(inputs)))
    after = worked_out(graph, inputs, positions, _AFTER.within(inputs)) if inputs.past else few
    for node, place, value in _meetings(graph, {inputs.ids, positions}):
        operator = operator_of(node, OPERATORS)
        decides = operator is not None and place in operator.static
        if not _same(few[value], after[value]) or not (decides or _same_along(few[value], more[value])):
            raise UnsupportedModelError(
                f"{named(node)}: its input {value.name!r} depends on how many tokens there are, and is neither a "
                "position nor a mask; export the model with a position_ids input"
            )


def _meetings(graph: ir.Graph, sources: set[ir.Value]) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Inputs of nodes that depend on ``sources``, which themselves do not, weights left out."""
    dependent = set(sources)
    for node in graph:
        if node.op_type in SHAPES_ONLY or not dependent & set(node.inputs):
            continue
        dependent.update(node.outputs)
        for place, value in enumerate(node.inputs):
            if value is not None and value not in dependent and not value.is_initializer():
                yield node, place, value


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return one.is_meta or torch.equal(one, other)


def _same_along(few: Tensor, more: Tensor) -> bool:
    """Whether a value for more tokens only repeats what it is for few."""
    for axis, (one, other) in enumerate(zip(few.shape, more.shape, strict=True)):
        if one != other:
            if few.is_meta or (one, other) != (_FEW.width, _MORE.width):
                return False
            if not torch.equal(more.narrow(axis, 0, 1).expand_as(more), more):
                return False
            few, more = few.narrow(axis, 0, 1), more.narrow(axis, 0, 1)
    return _same(few, more)
