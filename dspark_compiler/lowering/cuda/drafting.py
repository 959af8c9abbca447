"""What a drafter does with projections of a block, and of confirmed tokens: one launch from there to what it reads."""

import dataclasses
from typing import Any

from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering import draft_converters
from dspark_compiler.lowering.cuda.operands import out_dtype, rows_of
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of
from dspark_compiler.lowering.projected import Projected, find_projection
from dspark_compiler.lowering.rings import Rings
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.cuda.draft_prologue import block_prologue, ring_prologue
from dspark_compiler.schedules.cuda.qkv_prologue import Prologue

_PIECE = 8  # elements that heads are multiples of


def block_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.block_attention(q, k, v, k_ring, v_ring, length, spare, scale)."""
    given = bound_args(node)
    shape, scale = draft_converters.block_shape(node), given["scale"]
    stored = out_dtype(node, importer.plan)
    name = draft_converters.block_name("block_attention", shape, scale)
    kernel = importer.template("block_attention", identifier(f"{name}_{stored}"), shape, scale, out_dtype=stored)
    found = find_projection(given["q"], given["k"], given["v"])
    if found is None or shape.width != shape.fresh or shape.head_dim % _PIECE or shape.value_dim % _PIECE:
        read = [importer.env[given[name]] for name in "qkv"]
    else:
        read = _projected(found, shape, importer)
    args = [*read, *(importer.env[given[name]] for name in ("k_ring", "v_ring", "length"))]
    return importer.call(kernel, args, PhysicalTensor(shape_of(node), stored))


def _projected(found: Projected, shape: BlockShape, importer: EntryImporter) -> list[Any]:
    """Queries, keys and values of a block as its attention reads them."""
    work = Prologue(found.eps, rope=found.tables is not None)
    sizes = "x".join(map(str, dataclasses.astuple(shape)))
    kernel = block_prologue(identifier(f"block_prologue_{sizes}_{work.eps}_{work.rope}"), shape, work)
    args = [rows_of(found.source, importer, "float32"), *(importer.env[operand] for operand in found.operands)]
    outs = [
        PhysicalTensor((shape.batch, heads, shape.width, dim), "float32")
        for heads, dim in (
            (shape.heads, shape.head_dim),
            (shape.kv_heads, shape.head_dim),
            (shape.kv_heads, shape.value_dim),
        )
    ]
    return importer.call_many(kernel, args, outs)


def write_ring(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.write_ring; rings of keys and values that lie side by side in one projection are written together."""
    found = Rings.of(node)
    if found is None:
        return draft_converters.write_ring(node, importer)
    if node is found.writes[0]:
        work = Prologue(found.eps, rope=found.rope)
        x = rows_of(found.source, importer, "float32")
        found.lower(importer, x, lambda name, shape: ring_prologue(name, shape, work))
    return importer.env[bound_args(node)["ring"]]
