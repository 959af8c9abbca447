"""Finds where a graph works out its tokens' positions, and lets it read the input ``positions`` there.

Exporters write positions in many ways: an input, a range behind the past's length, sums of the mask. So they are not
looked for by form: the graph is worked out for several numbers of new and past tokens, and what equals the positions
each time, is them. Replaced is the last such value on each way to what else reads it.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.frontend.onnx.evaluate import Values, evaluate
from dspark_compiler.frontend.onnx.graph import constant, insert
from dspark_compiler.frontend.onnx.inputs import Inputs
from dspark_compiler.frontend.onnx.operators import SHAPES_ONLY
from dspark_compiler.frontend.onnx.types import ONNX_TYPES


class Call(NamedTuple):
    """How many rows, new tokens and past tokens a graph is worked out for."""

    batch: int
    width: int
    past: int

    def within(self, inputs: Inputs) -> "Call":
        """The same with as many rows as a graph takes, if it takes no other number."""
        return self._replace(batch=inputs.batch or self.batch)


_CALLS = (Call(2, 7, 5), Call(3, 11, 2), Call(2, 13, 0))
_CALLS_WITHOUT_PAST = (Call(2, 7, 0), Call(3, 11, 0))


def read_positions(graph: ir.Graph, inputs: Inputs, positions: ir.Value) -> bool:
    """Lets the graph read ``positions`` int64 [b,S]; whether all its sequences have to be at the same ones.

    ``graph`` reads no mask for attention any more.
    """
    calls = [call.within(inputs) for call in (_CALLS if inputs.past else _CALLS_WITHOUT_PAST)]
    runs = [worked_out(graph, inputs, positions, call) for call in calls]
    found = {
        value: _axis(tensor, calls[0])
        for value, tensor in runs[0].items()
        if all(value in run and _is_positions(run[value], call) for run, call in zip(runs, calls, strict=True))
    }
    order = {node: place for place, node in enumerate(graph)}
    shared = False
    for value, axis in found.items():
        users = [
            (node, place)
            for node, place in value.uses()
            if node in order and node.op_type not in SHAPES_ONLY and not found.keys() & set(node.outputs)
        ]
        if users:
            before = min((node for node, _ in users), key=order.__getitem__)
            new, is_shared = _laid_out(graph, before, positions, runs[0][value], axis)
            shared = shared or is_shared
            for node, place in users:
                node.replace_input_with(place, new)
    return shared


def worked_out(graph: ir.Graph, inputs: Inputs, positions: ir.Value, call: Call) -> Values:
    """Everything the logits are made of, unknown values as shapes."""
    given = torch.empty(call.batch, call.width, dtype=torch.int64, device="meta")
    return evaluate(inputs.feeds(*call) | {positions: given}, list(graph.outputs))


def _axis(tensor: Tensor, call: Call) -> int:
    return list(tensor.shape).index(call.width)


def _is_positions(tensor: Tensor, call: Call) -> bool:
    """Whether one axis counts the tokens from ``past`` on, and the others are the rows or of extent one."""
    if tensor.is_meta or tensor.dtype == torch.bool or call.width not in tensor.shape:
        return False
    axis = _axis(tensor, call)
    for place, extent in enumerate(tensor.shape):
        if place != axis and extent not in ((1, call.batch) if place == 0 else (1,)):
            return False
    row = torch.arange(call.past, call.past + call.width)
    return bool((tensor == row.view([-1 if place == axis else 1 for place in range(tensor.ndim)])).all())


def _laid_out(graph: ir.Graph, before: ir.Node, positions: ir.Value, like: Tensor, axis: int) -> tuple[ir.Value, bool]:
    """``positions`` with the axes and the type of ``like``; and whether there was room for one sequence's only."""
    shared = axis == 0
    new = positions
    if shared:
        new = insert(before, "Gather", [new, constant(graph, np.int64(0), "first_row")], {"axis": 0})
    ones = [place for place in range(like.ndim) if place not in (0, axis)]
    if ones:
        new = insert(before, "Unsqueeze", [new, constant(graph, np.asarray(ones), "positions_axes")])
    if like.dtype != torch.int64:
        new = insert(before, "Cast", [new], {"to": int(ONNX_TYPES[like.dtype])})
    return new, shared
