"""An ONNX decoder as a function of token ids and positions, which torch can trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention import canonicalize_attention
from dspark_compiler.frontend.onnx.evaluate import Values, call, evaluate, needed, plain, require
from dspark_compiler.frontend.onnx.fusions import fuse
from dspark_compiler.frontend.onnx.graph import drop_unused
from dspark_compiler.frontend.onnx.inputs import Inputs, find_inputs
from dspark_compiler.frontend.onnx.operators import Operator
from dspark_compiler.frontend.onnx.places import require_places_do_not_matter
from dspark_compiler.frontend.onnx.positions import Call, read_positions, worked_out
from dspark_compiler.frontend.onnx.types import read
from dspark_compiler.frontend.retrace import Traced, trace

_ROUNDED = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.UINT8)  # the last: codes of quantized weights

# Operators that hand token ids or positions on to the table they look up.
_PASSES = ("Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Add", "Clip")


@dataclass(frozen=True)
class Decoder:
    """A graph whose inputs are token ids and ``positions``, int64 [b,S], and whose output are logits [b,S,V].

    Attributes:
        inputs: what the file's inputs were for; those that are still read are fed as for a text without padding.
        positions: the input that took the place of all positions.
        layers: how many attend.
        length: tokens its masks were proved for, None for any number.
        shared_positions: whether all sequences of a call are at the same positions.
        vocab_size: V.
        hidden_size: the width of the token embedding.
        positions_table: rows of the smallest table that positions look up, None where they are computed.
        exact: whether the file's numbers are float32, so that who runs it as it is does not round otherwise than we do.
    """

    graph: ir.Graph
    inputs: Inputs
    positions: ir.Value
    layers: int
    length: int | None
    shared_positions: bool
    vocab_size: int
    hidden_size: int
    positions_table: int | None
    exact: bool

    def trace(self, batch: int, width: int) -> Traced:
        """The graph for ``batch`` rows of ``width`` tokens, in torch operators.

        Raises:
            UnsupportedModelError: a node that cannot be run for these lengths, by name.
        """
        logits = self.graph.outputs[0]
        unknown = torch.empty(batch, width, dtype=torch.int64, device="meta")
        feeds = self.inputs.feeds(batch, width) | {self.positions: unknown}
        values = evaluate(feeds, [logits])
        return _Trace(self, values).run(batch, width)


def decoder_of(model: ir.Model, where: Path) -> Decoder:
    """Reduces a model to that, rewriting its graph.

    Raises:
        UnsupportedModelError: names the node that stands against it.
    """
    graph = model.graph
    inputs = find_inputs(graph, where)
    exact = not any(value.dtype in _ROUNDED for value in graph.initializers.values())
    _keep_logits(graph, where)
    positions = ir.val("positions", ir.DataType.INT64, ["batch", "tokens"])
    graph.inputs.append(positions)
    attentions = canonicalize_attention(graph, inputs, positions)
    if attentions.layers == 0:
        raise UnsupportedModelError(
            f"{where}: no attention found; only decoders whose every layer attends can be compiled"
        )
    shared = read_positions(graph, inputs, positions)
    drop_unused(graph)
    require_places_do_not_matter(graph, inputs, positions)
    fuse(model)
    return Decoder(
        graph,
        inputs,
        positions,
        attentions.layers,
        attentions.length,
        shared,
        vocab_size=_vocab_size(graph, inputs, positions),
        hidden_size=min(_rows_looked_up(graph, inputs.ids, axis=1), default=0),
        positions_table=min(_rows_looked_up(graph, positions, axis=0), default=None),
        exact=exact,
    )


def _vocab_size(graph: ir.Graph, inputs: Inputs, positions: ir.Value) -> int:
    """V; refuses logits of some tokens only."""
    call = Call(2, 7, 0)
    logits = graph.outputs[0]
    shape = tuple(worked_out(graph, inputs, positions, call)[logits].shape)
    if len(shape) != 3 or shape[:2] != (call.batch, call.width):
        raise UnsupportedModelError(
            f"output {logits.name!r}: {shape} for {call.batch} x {call.width} tokens; logits of every token are "
            "needed, [batch, tokens, vocabulary]: export without keeping the last ones only"
        )
    return shape[2]


def _rows_looked_up(graph: ir.Graph, index: ir.Value, axis: int) -> list[int]:
    """An extent of each table that is looked up with ``index``, or with what reshapes and casts make of it."""
    reached = {index}
    found = []
    for node in graph:
        if node.op_type in ("Gather", "RotaryEmbedding"):
            tables = [value for value in node.inputs if value is not None and value.is_initializer()]
            if reached & set(node.inputs):
                found += [int(t.shape[axis]) for t in tables if t.shape is not None and len(t.shape) == 2]  # type: ignore[arg-type]
        elif node.inputs and node.inputs[0] in reached and node.op_type in _PASSES:
            reached.update(node.outputs)
    return found


def _keep_logits(graph: ir.Graph, where: Path) -> None:
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    if logits is None:
        names = ", ".join(str(value.name) for value in graph.outputs)
        raise UnsupportedModelError(
            f"{where}: its outputs ({names}) have no logits; export the model with its language head (ForCausalLM)"
        )
    graph.outputs[:] = [logits]
    drop_unused(graph)


class _Trace:
    """One tracing: what is known stays out of it, weights and other constants become arguments."""

    def __init__(self, decoder: Decoder, values: Values) -> None:
        self._decoder, self._values = decoder, values
        logits = decoder.graph.outputs[0]
        unknown = [value for value in needed([logits], {}) if values[value].is_meta]
        self._nodes = list(dict.fromkeys(node for value in unknown if (node := value.producer()) is not None))
        self._operators = [require(node) for node in self._nodes]
        self._arguments = self._constants()

    def run(self, batch: int, width: int) -> Traced:
        names = ["input_ids", "positions"]
        example = torch.zeros(batch, width, dtype=torch.int64)
        constants = [self._tensor(value) for value in self._arguments]
        traced = trace(self._forward, [example, example.clone(), *constants])
        refs = [*((name, None) for name in names), *zip(self._names(), constants, strict=True)]
        return Traced(traced, tuple(refs))

    def _constants(self) -> list[ir.Value]:
        """What the nodes read that is not worked out in the trace, except for numbers and shapes."""
        made = {output for node in self._nodes for output in node.outputs}
        made |= {self._decoder.inputs.ids, self._decoder.positions}
        found: dict[ir.Value, None] = {}
        for node, operator in zip(self._nodes, self._operators, strict=True):
            for place, value in enumerate(node.inputs):
                if value is not None and value not in made and self._as_number(node, operator, place) is None:
                    found[value] = None
        return list(found)

    def _forward(self, ids: Tensor, positions: Tensor, *constants: Tensor) -> tuple[Tensor]:
        decoder = self._decoder
        values: dict[ir.Value, Any] = dict(zip(self._arguments, constants, strict=True))
        values[decoder.inputs.ids], values[decoder.positions] = ids, positions
        for node, operator in zip(self._nodes, self._operators, strict=True):
            inputs = [
                None if value is None else values[value] if number is None else number
                for place, value in enumerate(node.inputs)
                for number in (self._as_number(node, operator, place),)
            ]
            values.update(zip(node.outputs, call(node, operator, inputs), strict=False))
        return (values[decoder.graph.outputs[0]],)

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
        if value.const_value is not None and value.producer() is None:
            return read(value.const_value)
        return self._values[value]

    def _names(self) -> Sequence[str]:
        return [value.name or f"constant_{place}" for place, value in enumerate(self._arguments)]
