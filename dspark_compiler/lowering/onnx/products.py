"""Products with weights, lookups in them, and norms."""

import math
from typing import Any

import numpy as np
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.lowering.onnx.emitter import CONTRIB, Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import FLOAT, INT64, Value


def linear(node: fx.Node, emitter: Emitter) -> Tensor:
    """X @ W.T [+ bias], by rows: a weight [N,K] is read as it lies, which is faster for few rows than its transpose."""
    given = bound_args(node)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    features, depth = shape_of(weight)
    rows = math.prod(shape_of(x)) // depth
    operands = [emitter.get(weight), *([] if bias is None else [emitter.get(bias)])]
    product = emitter.viewed(x, rows, depth).op("Gemm", *operands, transB=1)
    return emitter.tensor_of(node, product, (rows, features))


def matmul(node: fx.Node, emitter: Emitter) -> Value:
    """A product of what was computed."""
    first, second = args_of(node)
    return emitter.get(first).op("MatMul", emitter.get(second))


def embedding(node: fx.Node, emitter: Emitter) -> Tensor:
    """Rows of a weight."""
    weight, ids, *_ = args_of(node)
    count, depth = math.prod(shape_of(ids)), shape_of(weight)[1]
    return emitter.tensor_of(node, emitter.get(weight).gather(emitter.viewed(ids, count)), (count, depth))


def expert_linear(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.expert_linear(x, weight, expert): each row through its own expert's weight."""
    x, weight, expert = args_of(node)
    (rows, features), depth = shape_of(node), shape_of(x)[1]
    chosen = emitter.get(weight).gather(emitter.get(expert))  # [R,N,K]
    product = chosen.op("FusedMatMul", emitter.viewed(x, rows, depth, 1), domain=CONTRIB)
    return emitter.tensor_of(node, product, (rows, features, 1))


def topk(node: fx.Node, emitter: Emitter) -> tuple[Tensor, Tensor]:
    """aten.topk: the largest, and where they stand."""
    given = bound_args(node)
    x, count = given["self"], emitter.numbers([given["k"]])
    shape = (*shape_of(x)[:-1], given["k"])
    if given["dim"] not in (-1, len(shape) - 1):
        raise LoweringError(f"{node.name}: topk over axis {given['dim']} has no ONNX form in this version")
    found = emitter.ops(
        "TopK", emitter.get(x), count, dtypes=(FLOAT, INT64), axis=-1, largest=int(given["largest"]), sorted=1
    )
    values, places = (Tensor(value, shape, shape) for value in found)
    return values, places


def rms_norm(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.rms_norm(x, weight, eps)."""
    x, weight, eps = args_of(node)
    depth = shape_of(node)[-1]
    scale = _ones(depth, emitter.tensor(x).source) if weight is None else emitter.get(weight)
    made = emitter.tensor(x)
    if made.swapped or made.source_shape[-1] != depth:
        return emitter.tensor_of(node, _normed(emitter.get(x), scale, eps))
    return emitter.tensor_of(node, _normed(made.source, scale, eps), made.source_shape)


def _normed(x: Value, scale: Value, eps: float) -> Value:
    return x.op("RMSNormalization", scale, axis=-1, epsilon=eps)


def _ones(depth: int, like: Value) -> Value:
    return like.emitter.constant(np.ones(depth, like.dtype.numpy()))


def layer_norm(node: fx.Node, emitter: Emitter) -> Tensor:
    """aten.layer_norm over the last axis."""
    given = bound_args(node)
    x, depth = given["input"], shape_of(node)[-1]
    if tuple(given["normalized_shape"]) != (depth,):
        raise LoweringError(f"{node.name}: layer normalisation over more than the last axis has no ONNX form here")
    weight, bias = given["weight"], given["bias"]
    scale = _ones(depth, emitter.tensor(x).source) if weight is None else emitter.get(weight)
    rest = [] if bias is None else [emitter.get(bias)]
    made = emitter.tensor(x)
    flat = not made.swapped and made.source_shape[-1] == depth
    source, shape = (made.source, made.source_shape) if flat else (emitter.get(x), shape_of(x))
    return emitter.tensor_of(node, source.op("LayerNormalization", scale, *rest, axis=-1, epsilon=given["eps"]), shape)


def native_layer_norm(node: fx.Node, emitter: Emitter) -> tuple[Any, ...]:
    """aten.native_layer_norm: a tuple whose mean and reciprocal deviation no inference graph reads."""
    shape = shape_of(args_of(node)[0])
    x, normalized, weight, bias, eps = args_of(node)
    if tuple(normalized) != shape[-1:]:
        raise LoweringError(f"{node.name}: layer normalisation over more than the last axis has no ONNX form here")
    scale = _ones(shape[-1], emitter.tensor(x).source) if weight is None else emitter.get(weight)
    rest = [] if bias is None else [emitter.get(bias)]
    value = emitter.get(x).op("LayerNormalization", scale, *rest, axis=-1, epsilon=eps)
    return (Tensor(value, shape, shape),)
