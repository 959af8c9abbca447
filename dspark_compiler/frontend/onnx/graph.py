"""Small helpers over onnx_ir graphs."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from dspark_compiler.frontend.onnx.operators.base import CONTRIB, OURS


def is_node(value: ir.Value | None, *operators: str) -> bool:
    """Whether a value comes from one of these operators, of whatever domain."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type in operators


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def given(node: ir.Node, place: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def constant(graph: ir.Graph, array: Any, name: str) -> ir.Value:
    """A new constant of the graph, under a name of its own."""
    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.tensor(np.asarray(array), name=unique)
    value = ir.Value(
        name=unique, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def insert(
    before: ir.Node,
    operator: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    name: str | None = None,
) -> ir.Value:
    """A new node with one output in front of ``before``, where its graph is."""
    node = ir.node(operator, list(inputs), attributes or {}, domain=domain, name=name)
    graph = before.graph
    assert graph is not None
    graph.insert_before(before, node)
    return node.outputs[0]


def scalar(value: ir.Value | None) -> float | None:
    """The number a constant of one element is; None if it is not one."""
    tensor = None if value is None else constant_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy()).astype(np.float64).reshape(()))


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """What an initializer or a Constant node holds."""
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        found: ir.TensorProtocol = node.attributes["value"].value
        return found
    return None


def drop_unused(graph: ir.Graph) -> None:
    """Removes nodes and constants nothing reads."""
    for node in reversed(graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


__all__ = [
    "CONTRIB",
    "OURS",
    "attribute",
    "constant",
    "constant_tensor",
    "drop_unused",
    "given",
    "insert",
    "is_node",
    "scalar",
]
