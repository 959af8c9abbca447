"""Operators on each element by itself, and sums over axes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import args_of
from dspark_compiler.lowering.onnx.emitter import Converter, Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import BOOL, Value, dtype_of

_COMPARING = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """ONNX's type of torch's."""
    return dtype_of(torch.empty(0, dtype=dtype).numpy().dtype)


def unary(name: str, **attributes: Any) -> Converter:
    """An operator of one tensor."""

    def convert(node: fx.Node, emitter: Emitter) -> Tensor:
        return applied(node, emitter, lambda x: x.op(name, **attributes))

    return convert


def binary(name: str) -> Converter:
    """An operator of two tensors, or a tensor and a number; alpha, where there is one, is 1."""

    def convert(node: fx.Node, emitter: Emitter) -> Tensor | Value:
        first, second = args_of(node)[:2]
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            raise LoweringError(f"{node.name}: {node.target} with {dict(node.kwargs)} has no ONNX form in this version")
        dtype = _common(first, second)
        result = BOOL if name in _COMPARING else dtype
        if not isinstance(second, fx.Node):
            return applied(node, emitter, lambda x: x.cast(dtype).op(name, second, dtype=result))
        if not isinstance(first, fx.Node):
            return applied(
                node, emitter, lambda x: emitter.number(first, dtype).op(name, x.cast(dtype), dtype=result), 1
            )
        one, other = emitter.tensor(first), emitter.tensor(second)
        if one.source_shape == other.source_shape and one.shape == other.shape and one.swapped == other.swapped:
            value = one.source.cast(dtype).op(name, other.source.cast(dtype), dtype=result)
            return Tensor(value, one.source_shape, one.shape, one.swapped)
        return emitter.get(first).cast(dtype).op(name, emitter.get(second).cast(dtype), dtype=result)

    return convert


def applied(node: fx.Node, emitter: Emitter, function: Callable[[Value], Value], place: int = 0) -> Tensor:
    """A function of each element: how they lie stays as it is."""
    x = emitter.tensor(args_of(node)[place])
    return Tensor(function(x.source), x.source_shape, x.shape, x.swapped)


def _common(*operands: Any) -> ir.DataType:
    """The type an operator computes in."""
    first, second = (operand.meta["val"] if isinstance(operand, fx.Node) else operand for operand in operands)
    return onnx_type(torch.result_type(first, second))


def silu(node: fx.Node, emitter: Emitter) -> Tensor:
    """X * sigmoid(x)."""
    return applied(node, emitter, lambda x: x * x.op("Sigmoid"))


def gelu(node: fx.Node, emitter: Emitter) -> Tensor:
    """By the error function, or its approximation by tanh."""
    return applied(node, emitter, lambda x: x.op("Gelu", approximate=bound_args(node)["approximate"]))


def rsqrt(node: fx.Node, emitter: Emitter) -> Tensor:
    """1 / sqrt(x)."""
    return applied(node, emitter, lambda x: x.op("Sqrt").op("Reciprocal"))


def to_copy(node: fx.Node, emitter: Emitter) -> Tensor:
    """As another type."""
    return applied(node, emitter, lambda x: x.cast(onnx_type(node.meta["val"].dtype)))


def clamp(node: fx.Node, emitter: Emitter) -> Tensor:
    """Between two numbers, or on one side of one."""
    given = bound_args(node)

    def between(x: Value) -> Value:
        low = x if given.get("min") is None else x.maximum(given["min"])
        return low if given.get("max") is None else low.minimum(given["max"])

    return applied(node, emitter, between)


def where(node: fx.Node, emitter: Emitter) -> Value:
    """One or the other."""
    condition, yes, no = (emitter.get(arg) for arg in args_of(node))
    dtype = onnx_type(node.meta["val"].dtype)
    return condition.where(yes.cast(dtype), no.cast(dtype))


def softmax(node: fx.Node, emitter: Emitter) -> Value:
    """Over one axis."""
    x, axis, *_ = args_of(node)
    return emitter.get(x).op("Softmax", axis=axis)


def reduction(name: str) -> Converter:
    """Over some axes, or all."""

    def convert(node: fx.Node, emitter: Emitter) -> Value:
        given = bound_args(node)
        axes = given.get("dim")
        axes = [axes] if isinstance(axes, int) else axes
        inputs = [] if not axes else [emitter.numbers(axes)]
        x = emitter.get(given["self"]).cast(onnx_type(node.meta["val"].dtype))
        return x.op(name, *inputs, keepdims=int(given.get("keepdim", False)))

    return convert


def argmax(node: fx.Node, emitter: Emitter) -> Value:
    """The first of the largest."""
    given = bound_args(node)
    return emitter.get(given["self"]).op(
        "ArgMax", axis=given["dim"], keepdims=int(given["keepdim"]), dtype=ir.DataType.INT64
    )


def power(node: fx.Node, emitter: Emitter) -> Tensor:
    """To a power that is a number."""
    _, exponent = args_of(node)
    if exponent == 2:
        return applied(node, emitter, lambda value: value * value)
    return applied(node, emitter, lambda value: value.op("Pow", float(exponent)))


def cumsum(node: fx.Node, emitter: Emitter) -> Value:
    """The sums up to each element of an axis."""
    given = bound_args(node)
    x = emitter.get(given["self"]).cast(onnx_type(node.meta["val"].dtype))
    return x.op("CumSum", emitter.constant(np.asarray(given["dim"], np.int64)))
