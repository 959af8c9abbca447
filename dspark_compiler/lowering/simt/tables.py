"""What several nodes make of the same small tensor, in one launch: tables of rotations, columns of random numbers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tvm import relax

from dspark_compiler.graph.values import spec_of
from dspark_compiler.lowering import converters
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor, dtype_name
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.schedules.simt.tables import columns, rope_tables

_aten = torch.ops.aten


def cos(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.cos(x)."""
    return _table(node, importer, relax.op.cos)


def sin(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.sin(x)."""
    return _table(node, importer, relax.op.sin)


def select(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.select(x, dim, index): of an input whose columns are taken one by one, all at once."""
    x, axis, index = args_of(node)
    if x.op != "placeholder" or axis != 1 or len(shape_of(x)) != 2 or len(x.users) < 2:
        return converters.select(node, importer)
    rows, count = shape_of(x)
    if x not in importer.prepared:
        dtype = dtype_name(spec_of(x).dtype)
        kernel = columns(f"columns_{rows}x{count}_{dtype}", rows, count, dtype)
        outs = [PhysicalTensor((rows,), dtype)] * count
        importer.prepared[x] = tuple(importer.call_many(kernel, [importer.env[x]], outs))
    return importer.prepared[x][index % count]


def _table(node: fx.Node, importer: EntryImporter, otherwise: Callable[[Any], Any]) -> Any:
    angles = args_of(node)[0]
    found = _rotation(angles)
    if found is None:
        return importer.block_builder.emit(otherwise(importer.env[angles]))
    made = importer.prepared.get(angles)
    if made is None:
        positions, frequencies = found
        rows, (half,) = math.prod(shape_of(positions)), shape_of(frequencies)
        args = [importer.reshape(importer.env[positions], (rows,)), importer.env[frequencies]]
        outs = [PhysicalTensor((rows, 2 * half), "float32")] * 2
        made = tuple(importer.call_many(rope_tables(f"rope_tables_{rows}x{half}", rows, half), args, outs))
        importer.prepared[angles] = made
    return importer.reshape(made[node.target is _aten.sin.default], shape_of(node))


def _rotation(angles: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Positions int64 [b,S] and frequencies [half] of angles [b,S,2 half], each of which stands there twice."""
    if angles.target is not _aten.cat.default or len(shape_of(angles)) != 3:
        return None
    parts, *axis = args_of(angles)
    if len(parts) != 2 or parts[0] is not parts[1] or axis not in ([-1], [2]):
        return None
    product = parts[0]
    if product.target is not _aten.mul.Tensor or spec_of(product).dtype is not torch.float32:
        return None
    wide, frequencies = args_of(product)
    positions = _widened(wide)
    if positions is None or not isinstance(frequencies, fx.Node) or len(shape_of(frequencies)) != 1:
        return None
    return (positions, frequencies) if spec_of(frequencies).dtype is torch.float32 else None


def _widened(column: fx.Node) -> fx.Node | None:
    """Positions int64 [b,S] that are seen as [b,S,1], as floats."""
    if column.target is not _aten._to_copy.default:
        return None
    column = args_of(column)[0]
    if column.target is not _aten.unsqueeze.default or args_of(column)[1] not in (-1, 2):
        return None
    positions: fx.Node = args_of(column)[0]
    return positions if spec_of(positions).dtype is torch.int64 else None
