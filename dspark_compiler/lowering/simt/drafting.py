"""What a drafter does with projections of a block, and of confirmed tokens, in one launch each."""

from functools import partial
from typing import Any

from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering import draft_converters
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of
from dspark_compiler.lowering.projected import Projected, find_projection
from dspark_compiler.lowering.rings import Rings
from dspark_compiler.lowering.simt.attention import Exchange, meeting_counters, projection_rows
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.simt.block_step import block_counters, block_step, is_block_step
from dspark_compiler.schedules.simt.eighths import EIGHTHS
from dspark_compiler.schedules.simt.qkv_prologue import Prologue
from dspark_compiler.schedules.simt.ring_prologue import ring_prologue
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS


def write_ring(node: fx.Node, importer: EntryImporter, *, exchange: Exchange) -> Any:
    """dspark.write_ring; rings of keys and values that lie side by side in one projection are written together."""
    found = Rings.of(node)
    if found is None:
        return draft_converters.write_ring(node, importer)
    if node is found.writes[0]:
        work, rows = Prologue(found.eps, rope=found.rope), found.shape.shape
        build = partial(ring_prologue, work=work, awaits=_awaits(rows.rows * rows.width, exchange))
        found.lower(importer, projection_rows(found.source, importer), build)
    return importer.env[bound_args(node)["ring"]]


def block_attention(node: fx.Node, importer: EntryImporter, *, exchange: Exchange) -> Any:
    """dspark.block_attention(q, k, v, k_ring, v_ring, length, spare, scale)."""
    given, shape = bound_args(node), draft_converters.block_shape(node)
    found = find_projection(given["q"], given["k"], given["v"])
    if found is None or exchange is Exchange.NONE or not is_block_step(shape):
        return draft_converters.block_attention(node, importer)
    return _step(node, importer, found, shape, awaits=_awaits(shape.batch * shape.width, exchange))


def _step(node: fx.Node, importer: EntryImporter, found: Projected, shape: BlockShape, *, awaits: bool) -> Any:
    given, work = bound_args(node), Prologue(found.eps, rope=found.tables is not None)
    eighths = awaits and node in importer.fusions.eighths
    name = f"{draft_converters.block_name('block_step', shape, given['scale'])}_{work.eps}_{work.rope}_{eighths}"
    kernel, workspace = block_step(identifier(name), shape, given["scale"], work, awaits=awaits, eighths=eighths)
    args = [projection_rows(found.source, importer), *(importer.env[operand] for operand in found.operands)]
    args += [importer.env[given[name]] for name in ("k_ring", "v_ring", "length")]
    args.append(meeting_counters(importer, block_counters(shape), own=awaits))
    outs = (PhysicalTensor(shape_of(node), EIGHTHS if eighths else "float32"), PhysicalTensor(workspace, "uint32"))
    return importer.call_inplace(kernel, args, [len(args) - 1], *outs)


def _awaits(rows: int, exchange: Exchange) -> bool:
    """Whether so many rows of a projection are handed on (schedules/vulkan/stream_linear.py)."""
    return exchange is Exchange.BETWEEN_LAUNCHES and rows <= MOST_ROWS
