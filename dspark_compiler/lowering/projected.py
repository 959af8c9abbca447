"""Attention whose queries, keys and values are parts of one projection: what lies between takes one launch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dspark_compiler.lowering.nodes import args_of, shape_of

_aten, _dspark = torch.ops.aten, torch.ops.dspark
_TOKEN_MAJOR = [0, 2, 1, 3]


@dataclass(frozen=True)
class Projected:
    """The projection [b,S,T] that holds queries, keys and values side by side, and what is done to queries and keys.

    ``norms`` are the norms of a head of queries and of keys, ``tables`` the cosines and sines; None: not done.
    """

    source: fx.Node
    norms: tuple[fx.Node, fx.Node] | None
    tables: tuple[fx.Node, fx.Node] | None

    @property
    def eps(self) -> float | None:
        """What the norms add to the mean of squares."""
        return None if self.norms is None else args_of(self.norms[0])[2]

    @property
    def operands(self) -> list[fx.Node]:
        """The tensors besides the projection that the norms and rotations read."""
        weights = [] if self.norms is None else [args_of(norm)[1] for norm in self.norms]
        return weights + ([] if self.tables is None else list(self.tables))


@dataclass(frozen=True)
class Part:
    """Columns of a projection from ``start`` on, as heads; keys and queries are normed and rotated, if they are."""

    source: fx.Node
    start: int
    norm: fx.Node | None
    tables: tuple[fx.Node, fx.Node] | None


def find_projection(q: fx.Node, k: fx.Node, v: fx.Node) -> Projected | None:
    """The one projection that q, k and v [b,*,S,D] are parts of, in this order and without a gap."""
    parts = [find_part(node) for node in (q, k, v)]
    queries, keys, values = parts
    if queries is None or keys is None or values is None:
        return None
    if values.norm is not None or values.tables is not None or queries.tables != keys.tables:
        return None
    widths = [shape_of(node)[1] * shape_of(node)[3] for node in (q, k, v)]
    starts = [0, widths[0], widths[0] + widths[1]]
    same = all(part is not None and part.source is queries.source for part in parts)
    if not same or [queries.start, keys.start, values.start] != starts:
        return None
    if shape_of(queries.source)[-1] != sum(widths) or shape_of(q)[3] % 2:
        return None
    if queries.norm is None and keys.norm is None:
        return Projected(queries.source, None, queries.tables)
    if queries.norm is None or keys.norm is None or args_of(queries.norm)[2] != args_of(keys.norm)[2]:
        return None
    return Projected(queries.source, (queries.norm, keys.norm), queries.tables)


def find_part(node: fx.Node) -> Part | None:
    """Heads [b,H,S,D] as a piece of a projection's columns, normed head by head and rotated or not."""
    tables: tuple[Any, Any] | None = None
    if node.target is _dspark.rope.default:
        node, cos, sin = args_of(node)
        tables = (cos, sin)
    if node.target is not _aten.permute.default or list(args_of(node)[1]) != _TOKEN_MAJOR:
        return None
    node = args_of(node)[0]
    norm = None
    if node.target is _dspark.rms_norm.default and args_of(node)[1] is not None:
        norm, node = node, args_of(node)[0]
    if node.target is not _aten.reshape.default or args_of(node)[0].target is not _aten.slice.Tensor:
        return None
    piece = args_of(node)[0]
    source, axis, start, *_ = args_of(piece)
    if axis != len(shape_of(source)) - 1 or len(shape_of(source)) != 3 or len(piece.args) != 4:
        return None
    return Part(source, start, norm, tables)
