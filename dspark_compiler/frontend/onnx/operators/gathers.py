"""Operators that pick and place elements by indices, by the ONNX standard's names."""

import torch
from torch import Tensor

_aten = torch.ops.aten


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Gather: whole slices of one axis; rows of a table by ids are an embedding."""
    axis = axis % x.ndim
    if axis == 0 and x.ndim == 2 and x.dtype.is_floating_point:
        return _aten.embedding(x, indices.long())  # type: ignore[no-any-return]
    if indices.ndim == 0 and not indices.is_meta and x.shape[axis] > 0 and isinstance(number := _number(indices), int):
        return x.select(axis, number)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    return _aten.index(x, [None] * axis + [indices.long()])  # type: ignore[no-any-return]


def _number(indices: Tensor) -> int | None:
    """The index as a number, None where tracing hides it."""
    return int(indices) if type(indices) is Tensor else None


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """GatherElements."""
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    return x.gather(axis, indices.long())


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """GatherND; the last axis of ``indices`` are places along the axes after the batch's."""
    places = list(indices.long().unbind(-1))
    lead = []
    for axis in range(batch_dims):
        extent = x.shape[axis]
        shape = [1] * (indices.ndim - 1)
        shape[axis] = extent
        lead.append(torch.arange(extent, device=x.device).view(shape))
    return x[(*lead, *places)]


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """ScatterND."""
    if reduction not in ("none", "add"):
        raise ValueError(f"reduction {reduction!r}")
    return x.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=reduction == "add")


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """ScatterElements."""
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    if reduction == "add":
        return x.scatter_add(axis, indices, updates)
    raise ValueError(f"reduction {reduction!r}")


def top_k(x: Tensor, k: int | list[int], *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """TopK: values and places."""
    values, places = torch.topk(x, k[0] if isinstance(k, list) else k, dim=axis, largest=bool(largest))
    return values, places


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ArgMax."""
    return x.argmax(axis, keepdim=bool(keepdims))


def non_zero(x: Tensor) -> Tensor:
    """NonZero: places [rank, count]."""
    return x.nonzero().T
