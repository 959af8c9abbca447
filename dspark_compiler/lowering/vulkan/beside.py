"""Tensors side by side, where products of few rows hand them on."""

import math
from typing import Any

from torch import fx
from tvm import relax

from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS
from dspark_compiler.schedules.vulkan.beside import VECTOR, beside


def cat(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.cat(tensors, dim)."""
    tensors, *rest = args_of(node)
    axis = rest[0] if rest else 0
    *lead, columns = shape_of(node)
    rows, parts = math.prod(lead), [shape_of(tensor)[-1] for tensor in tensors]
    is_last = axis in (-1, len(lead)) and rows <= MOST_ROWS and not any(part % VECTOR for part in parts)
    if not is_last or not all(_is_handed_on(tensor, importer) for tensor in tensors):
        return importer.block_builder.emit(relax.op.concat([importer.env[tensor] for tensor in tensors], axis=axis))
    kernel = beside(f"beside_{rows}x{'_'.join(map(str, parts))}", rows, parts)
    args = [importer.reshape(importer.env[tensor], (rows, shape_of(tensor)[-1])) for tensor in tensors]
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((rows, columns), "float32")), shape_of(node))


def _is_handed_on(node: fx.Node, importer: EntryImporter) -> bool:
    """Whether it is a product, with what is done to it in the same launch."""
    if node in importer.fusions.matches:
        return True
    call = LinearCall.of(node)
    return call is not None and importer.plan.is_packed(call.weight)
