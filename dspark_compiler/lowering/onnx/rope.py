"""Rotary positions, tokens before heads: as projections give them and attention takes them."""

import torch
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.lowering.onnx.emitter import Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import Value, concat

_aten = torch.ops.aten

# What keeps two equal halves of the last axis equal.
_KEEPING = (
    *(_aten.cos.default, _aten.sin.default, _aten.unsqueeze.default, _aten._to_copy.default, _aten.clone.default),
    *(_aten.mul.Tensor, _aten.div.Tensor, _aten.expand.default),
)


def rope(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.rope(x, cos, sin)."""
    x, cos, sin = args_of(node)
    rows, heads, width, dim = shape_of(node)
    source_shape = (rows, width, heads * dim)
    if _repeats(cos, dim) and _repeats(sin, dim):
        tables = [_table(emitter, table, rows).slice(2, 0, dim // 2) for table in (cos, sin)]
        given = emitter.by_token(x, *source_shape)
        turned = given.op("RotaryEmbedding", *tables, num_heads=heads)
        return emitter.tensor_of(node, turned, source_shape, swapped=True)
    cosines, sines = (_table(emitter, table, rows).unsqueeze(2) for table in (cos, sin))
    given = emitter.by_token(x, rows, width, heads, dim)
    first, second = given.slice(3, 0, dim // 2), given.slice(3, dim // 2, dim)
    turned = given * cosines + concat([second.op("Neg"), first], 3) * sines
    return emitter.tensor_of(node, turned, (rows, width, heads, dim), swapped=True)


def _table(emitter: Emitter, table: fx.Node, rows: int) -> Value:
    """Cosines or sines [b,1,S,D] of all heads, as [rows,S,D]."""
    given, _, width, dim = shape_of(table)
    value = emitter.viewed(table, given, width, dim)
    return value if given == rows else value.expand(rows, width, dim)


def _repeats(table: fx.Node, dim: int) -> bool:
    """Whether both halves of the last axis are the same by the way they were made."""
    while table.target in _KEEPING:
        first, second = (*args_of(table), None)[:2]
        if isinstance(second, fx.Node) and shape_of(second) and shape_of(second)[-1] != 1:
            return False
        table = first
    if table.target is not _aten.cat.default:
        return False
    given = bound_args(table)
    parts = given["tensors"]
    return len(parts) == 2 and parts[0] is parts[1] and given["dim"] in (-1, len(shape_of(table)) - 1)
