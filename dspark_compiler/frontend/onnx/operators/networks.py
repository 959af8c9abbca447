"""Products, reductions, norms and rotations, by the ONNX standard's and ONNX Runtime's names."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import dspark_compiler.graph.ops  # noqa: F401  (defines torch.ops.dspark)

_dspark = torch.ops.dspark


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm: alpha a b + beta c."""
    a = a.T if transA else a
    y = functional.linear(a, b) if transB else a @ b
    y = y if alpha == 1.0 else y * alpha
    if c is None:
        return y
    return y + (c if beta == 1.0 else c * beta)


def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """FusedMatMul: alpha a b, last axes swapped where told."""
    if transBatchA or transBatchB:
        raise ValueError("transBatchA and transBatchB cannot be set")
    a, b = (x.transpose(-1, -2) if swapped else x for x, swapped in ((a, transA), (b, transB)))
    y = a @ b
    return y if alpha == 1.0 else y * alpha


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Einsum."""
    return torch.einsum(equation, *operands)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """LogSoftmax."""
    return torch.log_softmax(x, axis)


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if not axes:
            if noop_with_empty_axes:
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(keepdims))

    return reduce


reduce_sum = _reduction(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype))
reduce_mean = _reduction(lambda x, axes, keep: x.mean(axes, keep))
reduce_max = _reduction(lambda x, axes, keep: x.amax(axes, keep))
reduce_min = _reduction(lambda x, axes, keep: x.amin(axes, keep))
reduce_sum_square = _reduction(lambda x, axes, keep: x.square().sum(axes, keep))
reduce_l2 = _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt())


def reduce_prod(
    x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """ReduceProd."""
    for axis in sorted((axis % x.ndim for axis in axes or range(x.ndim)), reverse=True):
        x = x.prod(axis, keepdim=bool(keepdims), dtype=x.dtype)
    return x


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """LayerNormalization over the last axes (Ba et al. 2016, arXiv 1607.06450)."""
    return functional.layer_norm(x, x.shape[axis % x.ndim :], weight, bias, epsilon)


def rms_norm(x: Tensor, weight: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """RMSNormalization, SimplifiedLayerNormalization: over the last axis."""
    if axis % x.ndim != x.ndim - 1:
        raise ValueError(f"axis {axis}: only the last one")
    normed: Tensor = _dspark.rms_norm(x, weight, epsilon)
    return normed


def skip_rms_norm(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-5, count: int
) -> tuple[Tensor | None, ...]:
    """SkipSimplifiedLayerNormalization: the norm of a sum, and the sum."""
    total = x + skip if bias is None else x + skip + bias
    return (rms_norm(total, weight, epsilon=epsilon), None, None, total)[:count]


def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    weight: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    count: int,
) -> tuple[Tensor | None, ...]:
    """SkipLayerNormalization: the norm of a sum, and the sum."""
    total = x + skip if bias is None else x + skip + bias
    return (layer_norm(total, weight, beta, epsilon=epsilon), None, None, total)[:count]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None = None,
    *,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """dspark::Attention: q [b,H,S,D], k [b,G,S,D], v [b,G,S,Dv] -> [b,H,S,Dv]; see graph/ops.py."""
    out: Tensor = _dspark.attention(q, k, v, layer, scale, window, softcap, sinks)
    return out.transpose(1, 2)
