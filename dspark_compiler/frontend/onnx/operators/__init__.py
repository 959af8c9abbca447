"""What each ONNX operator is in torch: one literal table."""

from dspark_compiler.frontend.onnx.operators.base import Operator, operator_of
from dspark_compiler.frontend.onnx.operators.table import OPERATORS

__all__ = ["OPERATORS", "SHAPES_ONLY", "Operator", "operator_of"]

# Operators whose result depends on the shape of what they are given alone.
SHAPES_ONLY = frozenset(name for (_, name), entry in OPERATORS.items() if entry.shape_only)
