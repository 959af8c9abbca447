"""ONNX nodes written as arithmetic: what a converter computes with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Union

import numpy as np
import onnx_ir as ir

Operand = Union["Value", float, int, bool]

INT64, INT32, FLOAT, DOUBLE, BOOL = (
    ir.DataType.INT64,
    ir.DataType.INT32,
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.BOOL,
)


class Nodes(Protocol):
    """What expressions are made in: a graph under construction."""

    def op(
        self, name: str, *inputs: "Value | None", dtype: ir.DataType, domain: str = "", **attributes: Any
    ) -> "Value":
        """A node with one output."""

    def number(self, value: float, dtype: ir.DataType) -> "Value":
        """A constant without axes."""

    def numbers(self, values: Sequence[int]) -> "Value":
        """A constant of one axis, int64."""

    def constant(self, array: np.ndarray) -> "Value":
        """A small constant."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the graph under construction and its type; numbers beside it in an expression take that type."""

    emitter: Nodes
    value: ir.Value
    dtype: ir.DataType

    def op(
        self, name: str, *others: Operand, dtype: ir.DataType | None = None, domain: str = "", **attributes: Any
    ) -> "Value":
        """A node that this value is the first input of; its output has this value's type unless ``dtype`` is given."""
        inputs = [self, *(self.like(other) for other in others)]
        return self.emitter.op(name, *inputs, dtype=dtype or self.dtype, domain=domain, **attributes)

    def like(self, other: Operand) -> "Value":
        """The other operand of an expression."""
        return other if isinstance(other, Value) else self.emitter.number(other, self.dtype)

    def __add__(self, other: Operand) -> "Value":
        return self.op("Add", other)

    def __sub__(self, other: Operand) -> "Value":
        return self.op("Sub", other)

    def __mul__(self, other: Operand) -> "Value":
        return self.op("Mul", other)

    def __truediv__(self, other: Operand) -> "Value":
        return self.op("Div", other)

    def __mod__(self, other: Operand) -> "Value":
        """With the sign of the divisor."""
        return self.op("Mod", other)

    def __lt__(self, other: Operand) -> "Value":
        return self.op("Less", other, dtype=BOOL)

    def __le__(self, other: Operand) -> "Value":
        return self.op("LessOrEqual", other, dtype=BOOL)

    def __gt__(self, other: Operand) -> "Value":
        return self.op("Greater", other, dtype=BOOL)

    def __ge__(self, other: Operand) -> "Value":
        return self.op("GreaterOrEqual", other, dtype=BOOL)

    def equals(self, other: Operand) -> "Value":
        """Where both are the same."""
        return self.op("Equal", other, dtype=BOOL)

    def __and__(self, other: "Value") -> "Value":
        return self.op("And", other)

    def __or__(self, other: "Value") -> "Value":
        return self.op("Or", other)

    def __invert__(self) -> "Value":
        return self.op("Not")

    def minimum(self, other: Operand) -> "Value":
        """The smaller of both."""
        return self.op("Min", other)

    def maximum(self, other: Operand) -> "Value":
        """The larger of both."""
        return self.op("Max", other)

    def where(self, yes: Operand, no: Operand) -> "Value":
        """``yes`` where this is true, else ``no``; one of them has a type."""
        typed = yes if isinstance(yes, Value) else no
        assert isinstance(typed, Value)
        return self.emitter.op("Where", self, typed.like(yes), typed.like(no), dtype=typed.dtype)

    def cast(self, dtype: ir.DataType) -> "Value":
        """As another type."""
        return self if dtype == self.dtype else self.op("Cast", dtype=dtype, to=int(dtype))

    def reshape(self, *shape: int) -> "Value":
        """With another shape, of which one extent may be -1."""
        return self.op("Reshape", self.emitter.numbers(shape))

    def unsqueeze(self, *axes: int) -> "Value":
        """With axes of one element more, at these places of the result."""
        return self.op("Unsqueeze", self.emitter.numbers(axes))

    def transpose(self, *axes: int) -> "Value":
        """With its axes in this order."""
        return self.op("Transpose", perm=list(axes))

    def expand(self, *shape: int) -> "Value":
        """Repeated along axes of one element."""
        return self.op("Expand", self.emitter.numbers(shape))

    def slice(self, axis: int, start: int, end: int, step: int = 1) -> "Value":
        """Elements start, start + step, … up to end of an axis."""
        bounds = (self.emitter.numbers([bound]) for bound in (start, end, axis, step))
        return self.op("Slice", *bounds)

    def gather(self, index: "Value", axis: int = 0) -> "Value":
        """What ``index`` says of an axis."""
        return self.op("Gather", index, axis=axis)

    def sum(self, *axes: int, keep: bool = False) -> "Value":
        """Over some axes."""
        return self.op("ReduceSum", self.emitter.numbers(axes), keepdims=int(keep))


def concat(values: Sequence[Value], axis: int) -> Value:
    """One behind the other along an axis."""
    first = values[0]
    return first if len(values) == 1 else first.op("Concat", *values[1:], axis=axis)


def dtype_of(kind: np.dtype) -> ir.DataType:
    """ONNX's type of numpy's."""
    return ir.DataType.from_numpy(kind)
