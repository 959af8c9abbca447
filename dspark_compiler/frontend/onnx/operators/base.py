"""An entry of the operator table, and how a node finds its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

# Operators of these domains are ONNX's own, ONNX Runtime's contributions, and what our canonicalization writes.
CONTRIB, OURS = "com.microsoft", "dspark"

# Operators that exporters write in ONNX's own domain though the standard has no such operator.
_STRAYED = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}


@dataclass(frozen=True)
class Operator:
    """How an operator runs in torch.

    Attributes:
        function: takes the inputs (None where one is left out) and the attributes by name; gives a tensor or several.
        static: inputs that decide shapes; they must be known before the graph runs, and are given as lists or numbers.
        numbers: whether the right one of two inputs may be a plain number.
        shape_only: whether the result depends on the input's shape alone.
        shaped_by_values: whether the result's shape depends on what is in the inputs.
        counts: whether the function wants to know how many outputs the node has, as ``count``.
    """

    function: Callable[..., Any]
    static: tuple[int, ...] = ()
    numbers: bool = False
    shape_only: bool = False
    shaped_by_values: bool = False
    counts: bool = False


def key_of(node: ir.Node) -> tuple[str, str]:
    """(domain, operator) as the table has it."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == "" and node.op_type in _STRAYED:
        domain = CONTRIB
    return domain, node.op_type


def operator_of(node: ir.Node, table: dict[tuple[str, str], Operator]) -> Operator | None:
    """The node's entry, None if there is none."""
    return table.get(key_of(node))


def named(node: ir.Node) -> str:
    """A node as messages name it: ``node 'NAME' (Operator)``, with the domain of foreign ones."""
    domain, operator = key_of(node)
    operator = f"{domain}.{operator}" if domain else operator
    name = node.name or next((output.name for output in node.outputs if output.name), "unnamed")
    return f"node {name!r} ({operator})"


def attributes(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as plain values; tensors stay onnx_ir's."""
    found = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        found[name] = list(value) if isinstance(value, tuple) else value
    return found
