"""Runs a reduced graph under torch's tracing: what is known stays out of it, weights and constants become arguments."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.frontend.entries import INPUTS
from dspark_compiler.frontend.onnx.evaluate import Values, call, needed, plain, require
from dspark_compiler.frontend.onnx.operators import Operator
from dspark_compiler.frontend.onnx.types import read
from dspark_compiler.frontend.tracing import Traced, trace


class Tracing:
    """One tracing of a graph with one output, whose ``inputs`` are token ids and positions.

    ``values`` are those of a call of the lengths that are traced; ``weights`` those that were read already, by name.
    """

    def __init__(
        self, graph: ir.Graph, inputs: tuple[ir.Value, ir.Value], values: Values, weights: dict[str, Tensor]
    ) -> None:
        self._inputs, self._values, self._weights = inputs, values, weights
        self._output = graph.outputs[0]
        unknown = [value for value in needed([self._output], {}) if values[value].is_meta]
        self._nodes = list(dict.fromkeys(node for value in unknown if (node := value.producer()) is not None))
        self._operators = [require(node) for node in self._nodes]
        self._arguments = self._constants()

    def run(self, batch: int, width: int) -> Traced:
        """The graph in torch operators."""
        example = torch.zeros(batch, width, dtype=torch.int64)
        constants = [self._tensor(value) for value in self._arguments]
        traced = trace(self._forward, [example, example.clone(), *constants])
        refs = [*((name, None) for name in INPUTS), *zip(self._names(), constants, strict=True)]
        return Traced(traced, tuple(refs))

    def _constants(self) -> list[ir.Value]:
        """What the nodes read that is not worked out in the trace, except for numbers and shapes."""
        made = {output for node in self._nodes for output in node.outputs}
        made.update(self._inputs)
        found: dict[ir.Value, None] = {}
        for node, operator in zip(self._nodes, self._operators, strict=True):
            for place, value in enumerate(node.inputs):
                if value is not None and value not in made and self._as_number(node, operator, place) is None:
                    found[value] = None
        return list(found)

    def _forward(self, ids: Tensor, positions: Tensor, *constants: Tensor) -> tuple[Tensor]:
        values: dict[ir.Value, Any] = dict(zip(self._arguments, constants, strict=True))
        values.update(zip(self._inputs, (ids, positions), strict=True))
        for node, operator in zip(self._nodes, self._operators, strict=True):
            inputs = [
                None if value is None else values[value] if number is None else number
                for place, value in enumerate(node.inputs)
                for number in (self._as_number(node, operator, place),)
            ]
            values.update(zip(node.outputs, call(node, operator, inputs), strict=False))
        return (values[self._output],)

    def _as_number(self, node: ir.Node, operator: Operator, place: int) -> Any:
        """A number or a list in place of a tensor, where the operator takes one; None for a tensor."""
        value = node.inputs[place]
        if value is None:
            return None
        known = self._values[value]
        if place in operator.static:
            return plain(node, known)
        other = None if not operator.numbers or place != 1 else node.inputs[0]
        if other is None or known.is_meta or known.numel() != 1 or known.ndim > self._values[other].ndim:
            return None
        return known.item() if known.dtype == self._values[other].dtype else None

    def _tensor(self, value: ir.Value) -> Tensor:
        if value.const_value is None or value.producer() is not None:
            return self._values[value]
        name = value.name or ""
        if name not in self._weights:
            self._weights[name] = read(value.const_value)
        return self._weights[name]

    def _names(self) -> Sequence[str]:
        """Those of constants in the file; what was worked out is numbered."""
        return [
            f"constant_{place}" if value.name is None or value.producer() is not None else value.name
            for place, value in enumerate(self._arguments)
        ]
