"""Operators that move elements or look at them in another shape."""

from typing import Any

import numpy as np
import torch
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.lowering.onnx.emitter import Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import INT64, Value, concat, dtype_of

_SLICE = torch.ops.aten.slice.Tensor


def reshape(node: fx.Node, emitter: Emitter) -> Tensor:
    """Nothing at all, where nothing else needs the shape."""
    x = emitter.tensor(args_of(node)[0])
    if x.swapped:
        return emitter.tensor_of(node, emitter.get(args_of(node)[0]), x.shape)
    return emitter.tensor_of(node, x.source, x.source_shape)


def permute(node: fx.Node, emitter: Emitter) -> Tensor | Value:
    """The swap of heads and tokens waits until someone needs it."""
    given, axes = args_of(node)
    x = emitter.tensor(given)
    axes = [axis % len(axes) for axis in axes]
    if axes == [0, 2, 1, 3]:
        return Tensor(x.source, x.source_shape, shape_of(node), not x.swapped)
    return emitter.get(given).transpose(*axes)


def slice_(node: fx.Node, emitter: Emitter) -> Tensor | Value:
    """Pieces that make up the whole last axis are cut at once."""
    given = bound_args(node)
    x, axis, start, end, step = (given[name] for name in ("self", "dim", "start", "end", "step"))
    shape, made = shape_of(x), emitter.tensor(x)
    axis, extent = axis % len(shape), shape[axis % len(shape)]
    start, end = _bound(start or 0, extent), extent if end is None else _bound(end, extent)
    whole = axis == len(shape) - 1 and not made.swapped and made.source_shape[-1] == extent
    if not whole:
        return emitter.get(x).slice(axis, start, end, step)
    source_shape = (*made.source_shape[:-1], shape_of(node)[-1])
    pieces = _pieces(x) if step == 1 else []
    if (start, end) not in pieces:
        return emitter.tensor_of(node, made.source.slice(len(source_shape) - 1, start, end, step), source_shape)
    sizes = emitter.numbers([stop - begin for begin, stop in pieces])
    dtypes = [made.source.dtype] * len(pieces)
    parts = emitter.ops("Split", made.source, sizes, dtypes=dtypes, axis=-1)
    return emitter.tensor_of(node, parts[pieces.index((start, end))], source_shape)


def _pieces(x: fx.Node) -> list[tuple[int, int]]:
    """Where the last axis is cut, if it is cut into pieces that make up the whole; else nothing."""
    shape, found = shape_of(x), set()
    for user in x.users:
        if user.target is not _SLICE:
            continue
        given = bound_args(user)
        if given["dim"] % len(shape) == len(shape) - 1 and given["step"] == 1:
            end = shape[-1] if given["end"] is None else _bound(given["end"], shape[-1])
            found.add((_bound(given["start"] or 0, shape[-1]), end))
    pieces = sorted(found)
    follows = [begin for begin, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
    return pieces if len(pieces) > 1 and follows and pieces[-1][1] == shape[-1] else []


def _bound(place: int, extent: int) -> int:
    return min(place if place >= 0 else place + extent, extent)


def unsqueeze(node: fx.Node, emitter: Emitter) -> Tensor:
    """An axis of one element more."""
    return reshape(node, emitter)


def expand(node: fx.Node, emitter: Emitter) -> Value:
    """Repeated along axes of one element."""
    return emitter.get(args_of(node)[0]).expand(*shape_of(node))


def clone(node: fx.Node, emitter: Emitter) -> Tensor:
    """The same elements."""
    return emitter.tensor(args_of(node)[0])


def cat(node: fx.Node, emitter: Emitter) -> Value:
    """One behind the other."""
    given = bound_args(node)
    return concat([emitter.get(part) for part in given["tensors"]], given["dim"])


def stack(node: fx.Node, emitter: Emitter) -> Value:
    """One behind the other along a new axis."""
    given = bound_args(node)
    axis = given["dim"] % len(shape_of(node))
    return concat([emitter.get(part).unsqueeze(axis) for part in given["tensors"]], axis)


def select(node: fx.Node, emitter: Emitter) -> Tensor:
    """One place of an axis."""
    x, axis, index = args_of(node)
    axis, extent = axis % len(shape_of(x)), shape_of(x)[axis % len(shape_of(x))]
    piece = emitter.get(x).slice(axis, index % extent, index % extent + 1)
    kept = list(shape_of(x))
    kept[axis] = 1
    return emitter.tensor_of(node, piece, kept)


def index(node: fx.Node, emitter: Emitter) -> Value:
    """Rows of the first axis."""
    x, indices = args_of(node)
    if len(indices) != 1 or indices[0] is None:
        raise LoweringError(f"{node.name}: index by {len(indices)} tensors has no ONNX form in this version")
    return emitter.get(x).gather(emitter.get(indices[0]))


def gather(node: fx.Node, emitter: Emitter) -> Value:
    """Element by element along an axis."""
    given = bound_args(node)
    return emitter.get(given["self"]).op("GatherElements", emitter.get(given["index"]), axis=given["dim"])


def getitem(node: fx.Node, emitter: Emitter) -> Any:
    """One of several tensors."""
    several, place = args_of(node)
    return emitter.made[several][place]


def arange(node: fx.Node, emitter: Emitter) -> Value:
    """A constant."""
    given = bound_args(node)
    start, step = given.get("start", 0), given.get("step", 1)
    kind = node.meta["val"].dtype
    return emitter.constant(torch.arange(start, given["end"], step, dtype=kind).numpy())


def full(node: fx.Node, emitter: Emitter) -> Value:
    """One number everywhere."""
    given = bound_args(node)
    value = next(given[name] for name in ("fill_value", "s") if name in given)
    kind = torch.empty(0, dtype=node.meta["val"].dtype).numpy().dtype
    number = emitter.number(value, dtype_of(kind))
    return number.expand(*shape_of(node)) if shape_of(node) else number


def last_row(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.last_row(x, count): each row's last real token."""
    x, count = args_of(node)
    rows, width, depth = shape_of(x)
    first = emitter.constant(np.arange(rows, dtype=np.int64) * width)
    place = (emitter.get(count).cast(INT64) - 1).maximum(0) + first
    return emitter.tensor_of(node, emitter.viewed(x, rows * width, depth).gather(place), (rows, depth))
