"""An ONNX decoder as a function of token ids and positions, which torch can trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention import canonicalize_attention
from dspark_compiler.frontend.onnx.evaluate import evaluate, require
from dspark_compiler.frontend.onnx.fusions import fuse
from dspark_compiler.frontend.onnx.graph import drop_unused
from dspark_compiler.frontend.onnx.inputs import Inputs, find_inputs
from dspark_compiler.frontend.onnx.operators.base import CONTRIB, key_of
from dspark_compiler.frontend.onnx.places import require_places_do_not_matter
from dspark_compiler.frontend.onnx.positions import Call, read_positions, worked_out
from dspark_compiler.frontend.onnx.quantized import PackedWeight, dequantize_linears
from dspark_compiler.frontend.onnx.rotations import share_tables
from dspark_compiler.frontend.onnx.tables import keep_whole_tables
from dspark_compiler.frontend.onnx.ties import tie_heads
from dspark_compiler.frontend.onnx.tracing import Tracing
from dspark_compiler.frontend.tracing import Traced
from dspark_compiler.quantization.weight import QuantizedWeight

# Operators that are rewritten before anything is run.
_REWRITTEN = frozenset(
    {
        ("", "Attention"),
        (CONTRIB, "GroupQueryAttention"),
        (CONTRIB, "MultiHeadAttention"),
        (CONTRIB, "MatMulNBits"),
    }
)

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
        quantized: weights that were codes, by the names of the numbers these stand for.
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
    quantized: Mapping[str, PackedWeight]

    def stored_weights(self) -> dict[str, QuantizedWeight]:
        """The quantized weights of the file by their names, as codes and scales."""
        found = ((name, packed.stored()) for name, packed in self.quantized.items())
        return {name: weight for name, weight in found if weight is not None}

    def trace(self, batch: int, width: int, weights: dict[str, Tensor]) -> Traced:
        """The graph for ``batch`` rows of ``width`` tokens, in torch operators.

        ``weights`` are those read already, by name; what is read is added, so that traces share them.

        Raises:
            UnsupportedModelError: a node that cannot be run for these lengths, by name.
        """
        logits = self.graph.outputs[0]
        unknown = torch.empty(batch, width, dtype=torch.int64, device="meta")
        feeds = self.inputs.feeds(batch, width) | {self.positions: unknown}
        values = evaluate(feeds, [logits])
        return Tracing(self.graph, (self.inputs.ids, self.positions), values, weights).run(batch, width)


def decoder_of(model: ir.Model, where: Path) -> Decoder:
    """Reduces a model to that, rewriting its graph.

    Raises:
        UnsupportedModelError: names the node that stands against it.
    """
    graph = model.graph
    inputs = find_inputs(graph, where)
    exact = not any(value.dtype in _ROUNDED for value in graph.initializers.values())
    _keep_logits(graph, where)
    _require_known_operators(graph)
    positions = ir.val("positions", ir.DataType.INT64, ["batch", "tokens"])
    graph.inputs.append(positions)
    quantized = dequantize_linears(graph)
    keep_whole_tables(graph)
    attentions = canonicalize_attention(graph, inputs, positions)
    if attentions.layers == 0:
        raise UnsupportedModelError(
            f"{where}: no attention found; only decoders whose every layer attends can be compiled"
        )
    shared = read_positions(graph, inputs, positions)
    drop_unused(graph)
    require_places_do_not_matter(graph, inputs, positions)
    share_tables(graph)
    tie_heads(graph)
    fuse(model)
    drop_unused(graph)
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
        quantized=quantized,
    )


def _require_known_operators(graph: ir.Graph) -> None:
    """Refuses the first operator that nothing here can do with, before anything is worked out."""
    for node in graph:
        if key_of(node) not in _REWRITTEN:
            require(node)


def _vocab_size(graph: ir.Graph, inputs: Inputs, positions: ir.Value) -> int:
    """V; refuses logits of some tokens only."""
    call = Call(2, 7, 0).within(inputs)
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
