"""The ``dspark::`` operators: the seam between captured models and our cache, with torch reference semantics.

Shapes: b rows of a call, S new tokens a row, H query heads, G key/value heads, D head size,
B sequences the artifact holds, C slots a sequence, N scratch rows a sequence.

The reference implementations run on the CPU in float32 and are what lowered kernels are tested against.
"""

import torch
from torch import Tensor

from dspark_compiler.graph import cache_ops, draft_ops, pruning_ops, quantized_ops, sampling_ops
from dspark_compiler.graph.reference import causal_mask, masked_attention

__all__ = [
    "attention",
    "cache_ops",
    "draft_ops",
    "expert_linear",
    "last_row",
    "pruning_ops",
    "quantized_ops",
    "rms_norm",
    "rope",
    "sampling_ops",
]


@torch.library.custom_op("dspark::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Causal self-attention of one layer over the tokens given: the seam every front end produces.

    q [b,H,S,D], k [b,G,S,D], v [b,G,S,Dv], rope already applied -> [b,S,H,Dv].
    ``window`` 0 and ``softcap`` 0.0 mean none; ``sinks`` [H] are learned logits (gpt-oss).
    """
    positions = torch.arange(q.shape[2], device=q.device)
    mask = causal_mask(positions, positions.expand(k.shape[1], -1), window)
    return masked_attention(q, k, v, mask.expand(q.shape[0], -1, -1, -1), scale, softcap, sinks)


@attention.register_fake
def _(q, k, v, layer, scale, window, softcap, sinks):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op("dspark::last_row", mutates_args=())
def last_row(x: Tensor, count: Tensor) -> Tensor:
    """Each row's last real token (count-1): x [b,S,K], count int32 [b] -> [b,1,K]."""
    index = (count.long() - 1).clamp(min=0)
    return x[torch.arange(x.shape[0]), index][:, None].contiguous()


@last_row.register_fake
def _(x, count):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], 1, x.shape[2])


@torch.library.custom_op("dspark::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Computes x / sqrt(mean(x^2, last axis) + eps) * weight in float32; x [..., K], weight [K].

    Zhang & Sennrich 2019, eq. 4.
    """
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.float()
    return y.to(x.dtype)


@rms_norm.register_fake
def _(x, weight, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rms_norm_saved(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + ctx.eps)
    normal = x.float() * scale
    inner = grad.float() if weight is None else grad.float() * weight.float()
    to_x = scale * (inner - normal * (inner * normal).mean(-1, keepdim=True))
    to_weight = None if weight is None else (grad.float() * normal).flatten(0, -2).sum(0).to(weight.dtype)
    return to_x.to(x.dtype), to_weight, None


rms_norm.register_autograd(_rms_norm_backward, setup_context=_rms_norm_saved)


@torch.library.custom_op("dspark::rope", mutates_args=())
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split form: x * cos + [-x2, x1] * sin.

    x [b,H,S,D], cos and sin [b,1,S,D] -> [b,H,S,D]. Su et al. 2021, eq. 34.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


@rope.register_fake
def _(x, cos, sin):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rope_saved(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _rope_backward(ctx, grad):  # type: ignore[no-untyped-def]
    cos, sin = ctx.saved_tensors
    first, second = (grad * sin).chunk(2, dim=-1)
    return grad * cos + torch.cat([second, -first], dim=-1), None, None  # angles are not learned


rope.register_autograd(_rope_backward, setup_context=_rope_saved)


@torch.library.custom_op("dspark::expert_linear", mutates_args=())
def expert_linear(x: Tensor, weight: Tensor, expert: Tensor) -> Tensor:
    """Each row through its own expert's weight: y[r] = x[r] @ weight[expert[r]].T.

    x [R,K], weight [E,N,K], expert int64 [R] -> [R,N]. Shazeer et al. 2017 (arXiv 1701.06538), one projection of eq. 1.
    """
    return torch.bmm(weight[expert], x.unsqueeze(-1)).squeeze(-1)


@expert_linear.register_fake
def _(x, weight, expert):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[1])
