"""Writes of a drafter's rings that read one projection: one launch from there to the rings of all layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of
from dspark_compiler.lowering.projected import Part, find_part
from dspark_compiler.schedules.ring import RingRows
from dspark_compiler.schedules.slot_rows import RowShape

_WRITE = torch.ops.dspark.write_ring.default
_CONTROL = ("length", "sequence", "count")
_PIECE = 8  # elements that heads are multiples of


@dataclass(frozen=True)
class Rings:
    """Writes of keys and values in turns, layer after layer, which together take all columns of one projection."""

    writes: list[fx.Node]
    parts: list[Part]

    @staticmethod
    def of(node: fx.Node) -> "Rings | None":
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
        found = Rings(writes, parts)
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
        return len(places) == len(alike) == 1 and plain and shape_of(self.source)[-1] == start

    @property
    def source(self) -> fx.Node:
        """The projection [b,S,T]."""
        return self.parts[0].source

    @property
    def eps(self) -> float | None:
        """Of the norms of keys; None where there are none."""
        norm = self.parts[0].norm
        return None if norm is None else args_of(norm)[2]

    @property
    def rope(self) -> bool:
        """Whether keys are rotated."""
        return self.parts[0].tables is not None

    @property
    def shape(self) -> RingRows:
        """Sizes."""
        given = bound_args(self.writes[0])
        rows, heads, width, dim = shape_of(given["rows"])
        batch, _, places, _ = shape_of(given["ring"])
        value_dim = shape_of(bound_args(self.writes[1])["rows"])[3]
        told = {name: given[name] is not None for name in ("sequence", "count")}
        shape = RowShape(batch, heads, places, rows, width, dim)
        return RingRows(shape, value_dim, len(self.writes) // 2, **told)

    def lower(self, importer: EntryImporter, x: Any, build: Callable[[str, RingRows], tvm.tirx.PrimFunc]) -> None:
        """Emits all writes: the kernel that ``build`` makes under a name, over the projection ``x`` [b S, T]."""
        rows = self.shape
        shape, layers = rows.shape, rows.layers
        sizes = f"{shape.batch}x{shape.heads}x{shape.places}x{shape.rows}x{shape.width}x{shape.dim}x{rows.value_dim}"
        name = f"ring_prologue_{sizes}_{layers}_{rows.sequence}_{rows.count}_{self.eps}_{self.rope}"
        args = [x, *(importer.env[node] for node in self._operands())]
        rings = [bound_args(write)["ring"] for write in self.writes]
        told = [node for node in _control(self.writes[0]) if node is not None]
        written = list(range(len(args), len(args) + len(rings)))
        args += [importer.env[node] for node in [*rings, *told]]
        importer.call_inplace(build(identifier(name), rows), args, written)

    def _operands(self) -> list[fx.Node]:
        """What keys are normed and rotated by."""
        norms = [args_of(part.norm)[1] for part in self.parts[::2] if part.norm is not None]
        return [*norms, *(self.parts[0].tables or ())]


def _control(write: fx.Node) -> list[fx.Node | None]:
    given = bound_args(write)
    return [given[name] for name in _CONTROL]
