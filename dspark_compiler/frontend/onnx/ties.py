"""A head that is the token embedding written out once more, transposed, reads the embedding again.

Exporters fold the transpose of a tied weight into a second copy.
"""

import numpy as np
import onnx_ir as ir

from dspark_compiler.frontend.onnx.graph import OURS, insert
from dspark_compiler.frontend.onnx.operators.base import key_of

_ROWS = 4096  # of the embedding compared at a time


def tie_heads(graph: ir.Graph) -> None:
    """MatMul(x, W) with W the transpose of a table that is gathered from becomes ``dspark::Linear(x, table)``."""
    tables = [node.inputs[0] for node in graph if key_of(node) == ("", "Gather")]
    tables = [table for table in tables if table is not None and table.is_initializer()]
    for node in list(graph):
        if key_of(node) != ("", "MatMul") or (weight := node.inputs[1]) is None or not weight.is_initializer():
            continue
        table = next((table for table in tables if table is not None and _is_transpose(table, weight)), None)
        if table is not None:
            product = insert(node, "Linear", [node.inputs[0], table], domain=OURS, name=node.name)
            node.outputs[0].replace_all_uses_with(product, replace_graph_outputs=True)


def _is_transpose(table: ir.Value, weight: ir.Value) -> bool:
    one, other = table.const_value, weight.const_value
    if one is None or other is None or one.dtype != other.dtype or len(one.shape) != 2:
        return False
    if tuple(one.shape.numpy()) != tuple(reversed(other.shape.numpy())):
        return False
    rows, columns = np.asarray(one.numpy()), np.asarray(other.numpy())
    return all(
        np.array_equal(rows[begin : begin + _ROWS], columns[:, begin : begin + _ROWS].T)
        for begin in range(0, len(rows), _ROWS)
    )
