"""Tables read from the start: what is cut off behind does not matter to who looks rows up."""

import onnx_ir as ir

from dspark_compiler.frontend.onnx.graph import attribute, given, scalar
from dspark_compiler.frontend.onnx.operators.base import key_of


def keep_whole_tables(graph: ir.Graph) -> None:
    """A Gather of rows of ``table[:n]`` becomes one of ``table``, so that n need not be known."""
    for node in graph:
        if key_of(node) != ("", "Gather") or attribute(node, "axis", 0) != 0:
            continue
        table = node.inputs[0]
        while table is not None and (cut := table.producer()) is not None and _from_the_start(cut):
            table = cut.inputs[0]
        node.replace_input_with(0, table)


def _from_the_start(node: ir.Node) -> bool:
    """Whether a node leaves out rows at the end of its input and nothing else."""
    if node.op_type != "Slice":
        return False
    start, axis, step = (given(node, place) for place in (1, 3, 4))
    along = 0.0 if axis is None else scalar(axis)
    return scalar(start) == 0 and along == 0 and (step is None or scalar(step) == 1)
