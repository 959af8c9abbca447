"""Operators that move elements, or make tensors out of shapes, by the ONNX standard's names.

Arguments named ``axes``, ``shape``, ``starts`` and the like are lists, whether they came as inputs or as attributes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dspark_compiler.frontend.onnx.types import dtype_of, read

_END = 1 << 62  # beyond any axis, as exporters write "to the end"


def identity(x: Tensor) -> Tensor:
    """Identity."""
    return x


def constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
) -> Tensor:
    """Constant, as whichever attribute has it."""
    if value is not None:
        return read(value)
    for number, dtype in ((value_float, torch.float32), (value_floats, torch.float32), (value_int, torch.int64)):
        if number is not None:
            return torch.tensor(number, dtype=dtype)
    return torch.tensor(value_ints, dtype=torch.int64)


def constant_of_shape(shape: list[int], *, value: Any = None) -> Tensor:
    """ConstantOfShape: float32 zeros unless ``value`` says what."""
    if value is None:
        return torch.zeros(shape)
    number = read(value)
    return number.reshape(()).expand(shape).clone()


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape, or part of it."""
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    """Size: the number of elements."""
    return torch.tensor(x.numel())


def reshape(x: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    """Reshape; 0 keeps an axis, unless ``allowzero``."""
    if not allowzero:
        shape = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(shape)]
    return x.reshape(shape)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten to two axes."""
    axis = axis % (x.ndim + 1) if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis]))
    return x.reshape(rows, -1)


def expand(x: Tensor, shape: list[int]) -> Tensor:
    """Expand: broadcasts both ways."""
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(shape)))  # type: ignore[no-untyped-call]


def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """Transpose; all axes reversed unless told."""
    return x.permute(perm if perm is not None else list(reversed(range(x.ndim))))


def unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    """Unsqueeze at places of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Squeeze the axes given, or all of extent one."""
    found = [axis for axis in range(x.ndim) if x.shape[axis] == 1] if axes is None else axes
    for axis in sorted((axis % x.ndim for axis in found), reverse=True):
        x = x.squeeze(axis)
    return x


def concat(*pieces: Tensor, axis: int) -> Tensor:
    """Concat."""
    return torch.cat(pieces, dim=axis)


def slice_(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> Tensor:
    """Slice; a step may be negative."""
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = place if axes is None else axes[place] % x.ndim
        step = 1 if steps is None else steps[place]
        if step < 0:
            backwards = list(range(x.shape[axis]))[slice(start, None if end < -_END // 2 else end, step)]
            x = x.index_select(axis, torch.tensor(backwards, dtype=torch.int64, device=x.device))
            continue
        index = range(x.shape[axis])[slice(start, end, step)]
        whole = (slice(None),) * axis
        x = x[(*whole, slice(index.start, index.stop, step))]
    return x


def split(
    x: Tensor, sizes: list[int] | None = None, *, axis: int = 0, num_outputs: int | None = None, count: int
) -> tuple[Tensor, ...]:
    """Split into sizes, or into ``count`` pieces of which the last may be smaller."""
    extent = x.shape[axis]
    if sizes is None:
        each = -(-extent // count)
        sizes = [min(each, extent - each * place) for place in range(count)]
    return torch.split(x, sizes, dim=axis)


def tile(x: Tensor, repeats: list[int]) -> Tensor:
    """Tile."""
    return x.repeat(repeats)


def range_(start: float, limit: float, delta: float) -> Tensor:
    """Range: start, start + delta, … below limit."""
    return torch.arange(start, limit, delta)


def pad(
    x: Tensor, pads: list[int], value: Any = None, axes: list[int] | None = None, *, mode: str = "constant"
) -> Tensor:
    """Pad by a constant; negative pads cut."""
    if mode != "constant":
        raise ValueError(f"mode {mode!r}")
    axes = list(range(x.ndim)) if axes is None else axes
    amounts = [(0, 0)] * x.ndim
    for place, axis in enumerate(axes):
        amounts[axis % x.ndim] = (pads[place], pads[place + len(axes)])
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return torch.nn.functional.pad(x, flat, value=0 if value is None else value)


def trilu(x: Tensor, k: int = 0, *, upper: int = 1) -> Tensor:
    """Trilu: one triangle, the other zeros."""
    return torch.triu(x, k) if upper else torch.tril(x, k)


def cumulated(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """CumSum."""
    x = x.flip(axis) if reverse else x
    result = torch.cumsum(x, axis, dtype=x.dtype)
    result = result - x if exclusive else result
    return result.flip(axis) if reverse else result


def one_hot(indices: Tensor, depth: int | list[int], values: Tensor, *, axis: int = -1) -> Tensor:
    """OneHot."""
    classes = torch.arange(depth[0] if isinstance(depth, list) else depth, device=indices.device)
    hot = (indices.unsqueeze(-1) % len(classes)) == classes
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """EyeLike."""
    kind = x.dtype if dtype is None else dtype_of(dtype, "EyeLike")  # type: ignore[arg-type]
    return torch.diag(torch.ones(max(x.shape) + abs(k)), k)[: x.shape[0], : x.shape[1]].to(kind)
