"""What a drafter does with projections of a block, and of confirmed tokens: one launch from there to what it reads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering import draft_converters
from dspark_compiler.lowering.cuda.operands import out_dtype, rows_of
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of
from dspark_compiler.lowering.projected import Part, Projected, find_part, find_projection
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.cuda.draft_prologue import RingRows, block_prologue, ring_prologue
from dspark_compiler.schedules.cuda.qkv_prologue import Prologue
from dspark_compiler.schedules.slot_rows import RowShape

_WRITE = torch.ops.dspark.write_ring.default
_CONTROL = ("length", "sequence", "count")
_PIECE = 8  # elements that heads are multiples of


def block_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.block_attention(q, k, v, k_ring, v_ring, length, spare, scale)."""
    given = bound_args(node)
    batch, heads, width, dim = shape_of(given["q"])
    _, kv_heads, fresh, value_dim = shape_of(given["v"])
    places, spare, scale = shape_of(given["k_ring"])[2], given["spare"], given["scale"]
    shape = BlockShape(batch, heads, kv_heads, width, fresh, dim, value_dim, places, spare)
    stored = out_dtype(node, importer.plan)
    sizes = f"{batch}x{heads}x{kv_heads}x{width}x{fresh}x{dim}x{value_dim}x{places}x{spare}"
    kernel = importer.template(
        "block_attention", identifier(f"block_attention_{sizes}_{scale!r}_{stored}"), shape, scale, out_dtype=stored
    )
    found = find_projection(given["q"], given["k"], given["v"])
    if found is None or width != fresh or dim % _PIECE or value_dim % _PIECE:
        read = [importer.env[given[name]] for name in "qkv"]
    else:
        read = _projected(found, shape, importer, sizes)
    args = [*read, *(importer.env[given[name]] for name in ("k_ring", "v_ring", "length"))]
    return importer.call(kernel, args, PhysicalTensor(shape_of(node), stored))


def _projected(found: Projected, shape: BlockShape, importer: EntryImporter, sizes: str) -> list[Any]:
    """Queries, keys and values of a block as its attention reads them."""
    work = Prologue(found.eps, rope=found.tables is not None)
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
    found = _Rings.of(node)
    if found is None:
        return draft_converters.write_ring(node, importer)
    if node is found.writes[0]:
        found.lower(importer)
    return importer.env[bound_args(node)["ring"]]


@dataclass(frozen=True)
class _Rings:
    """Writes of keys and values in turns, layer after layer, which together take all columns of one projection."""

    writes: list[fx.Node]
    parts: list[Part]

    @staticmethod
    def of(node: fx.Node) -> "_Rings | None":
        """Those that a write belongs to."""
        own, control = find_part(bound_args(node)["rows"]), _control(node)
        if own is None:
            return None
        writes = [
            write
            for write in node.graph.find_nodes(op="call_function", target=_WRITE, sort=True)
            if (part := find_part(bound_args(write)["rows"]))
            and part.source is own.source
            and _control(write) == control
        ]
        parts = [part for write in writes if (part := find_part(bound_args(write)["rows"]))]
        found = _Rings(writes, parts)
        return found if found._fit() else None

    def _fit(self) -> bool:
        keys, values = self.parts[::2], self.parts[1::2]
        shapes = [shape_of(bound_args(write)["rows"]) for write in self.writes]
        if len(keys) != len(values) or shapes[::2] != shapes[:1] * len(keys) or shapes[1::2] != shapes[1:2] * len(keys):
            return False
        if any(shape[3] % _PIECE for shape in shapes) or shapes[0][1] != shapes[1][1]:
            return False
        places = {shape_of(bound_args(write)["ring"])[:3] for write in self.writes}
        alike = {(part.tables, None if part.norm is None else args_of(part.norm)[2]) for part in keys}
        plain = all(part.norm is None and part.tables is None for part in values)
        start = 0
        for part, shape in zip(self.parts, shapes, strict=True):
            if part.start != start:
                return False
            start += shape[1] * shape[3]
        return len(places) == len(alike) == 1 and plain and shape_of(self.parts[0].source)[-1] == start

    def lower(self, importer: EntryImporter) -> None:
        """Emits all writes."""
        given, first = bound_args(self.writes[0]), self.parts[0]
        rows, heads, width, dim = shape_of(given["rows"])
        batch, _, places, _ = shape_of(given["ring"])
        value_dim, keys = shape_of(bound_args(self.writes[1])["rows"])[3], self.parts[::2]
        norms = [part.norm for part in keys if part.norm is not None]
        work = Prologue(args_of(norms[0])[2] if norms else None, rope=first.tables is not None)
        shape = RingRows(
            RowShape(batch, heads, places, rows, width, dim),
            value_dim,
            len(keys),
            sequence=given["sequence"] is not None,
            count=given["count"] is not None,
        )
        told = [given[name] for name in _CONTROL if given[name] is not None]
        name = f"ring_prologue_{batch}x{heads}x{places}x{rows}x{width}x{dim}x{value_dim}_{len(keys)}_{len(told)}"
        kernel = ring_prologue(identifier(f"{name}_{shape.sequence}_{shape.count}_{work.eps}_{work.rope}"), shape, work)
        tables = [] if first.tables is None else list(first.tables)
        args = [rows_of(first.source, importer, "float32")]
        args += [importer.env[node] for node in [*(args_of(norm)[1] for norm in norms), *tables]]
        rings = [bound_args(write)["ring"] for write in self.writes]
        written = list(range(len(args), len(args) + len(rings)))
        args += [importer.env[node] for node in [*rings, *told]]
        importer.call_inplace(kernel, args, written)


def _control(write: fx.Node) -> list[fx.Node | None]:
    given = bound_args(write)
    return [given[name] for name in _CONTROL]
