"""RotaryEmbedding nodes share their tables: looked up, doubled and laid out once, not once a layer.

R rotated elements of a head; tables hold R/2 columns.
"""

import onnx_ir as ir

from dspark_compiler.frontend.onnx.graph import CONTRIB, OURS, attribute, constant, given, insert
from dspark_compiler.frontend.onnx.operators.base import key_of

# The inputs of each form: x first, then these.
_INPUTS = {("", "RotaryEmbedding"): ("cos", "sin", "at"), (CONTRIB, "RotaryEmbedding"): ("at", "cos", "sin")}


def share_tables(graph: ir.Graph) -> None:
    """Turns each node that rotates halves (not neighbours) into ``dspark::Rotary(x, cos, sin)``, [b,1,S,R] each."""
    shared: dict[tuple[ir.Value, ir.Value | None], ir.Value] = {}
    for node in list(graph):
        names = _INPUTS.get(key_of(node))
        if names is None or attribute(node, "interleaved", 0):
            continue
        inputs = {name: given(node, place + 1) for place, name in enumerate(names)}
        wide = []
        for name in ("cos", "sin"):
            table = inputs[name]
            assert table is not None
            key = table, inputs["at"]
            if key not in shared:
                shared[key] = _laid_out(graph, node, *key)
            wide.append(shared[key])
        options = {name: attribute(node, name, 0) for name in ("num_heads", "rotary_embedding_dim")}
        rotated = insert(node, "Rotary", [node.inputs[0], *wide], options, domain=OURS, name=node.name)
        node.outputs[0].replace_all_uses_with(rotated, replace_graph_outputs=True)


def _laid_out(graph: ir.Graph, before: ir.Node, table: ir.Value, at: ir.Value | None) -> ir.Value:
    """[b,S,R/2], or a table [P,R/2] and positions [b,S], as [b,1,S,R]."""
    rows = table if at is None else insert(before, "Gather", [table, at], {"axis": 0})
    twice = insert(before, "Concat", [rows, rows], {"axis": -1})
    return insert(before, "Unsqueeze", [twice, constant(graph, [1], "heads_axis")])
