"""The ``dspark::`` operators: the seam between captured models and our cache, with torch reference semantics.

Shapes: b rows of a call, S new tokens a row, H query heads, G key/value heads, D head size,
B sequences the artifact holds, C slots a sequence, N scratch rows a sequence.

The reference implementations run on the CPU in float32 and are what lowered kernels are tested against.
"""

import torch
from torch import Tensor

_INF = float("inf")


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Attention of q [b,H,S,D] to k/v [b,G,T,D] where mask [b,S,T] is True -> [b,S,H,Dv], softmax in float32."""
    groups = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(groups, dim=1)
    v = v.repeat_interleave(groups, dim=1)
    scores = (q.float() @ k.float().mT) * scale  # [b,H,S,T]
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask[:, None], -_INF)
    if sinks is not None:  # a learned logit per head that takes probability and gives no value
        column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        probs = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        probs = scores.softmax(-1)
    return (probs.to(v.dtype) @ v).transpose(1, 2).contiguous()


def _visible(query_slot: Tensor, slots: int, window: int) -> Tensor:
    """query_slot [b,S] -> [b,S,slots]: causal, and within the last ``window`` slots if window > 0."""
    slot = torch.arange(slots, device=query_slot.device)
    mask = slot <= query_slot[..., None]
    if window > 0:
        mask &= slot > query_slot[..., None] - window
    return mask


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
    slots = torch.arange(q.shape[2], device=q.device).expand(q.shape[0], -1)
    return _masked_attention(q, k, v, _visible(slots, k.shape[2], window), scale, softcap, sinks)


@attention.register_fake
def _(q, k, v, layer, scale, window, softcap, sinks):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op("dspark::append_attention", mutates_args=("k_cache", "v_cache"))
def append_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    sequence: Tensor,
    length: Tensor,
    count: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attention that writes confirmed tokens straight into live slots (prefill, decode).

    k_cache [B,G,C,D], v_cache [B,G,C,Dv]; sequence/length/count int32 [b]: the sequence a row belongs to,
    slots it uses already, and how many of the S tokens are real. Token i < count goes to slot length+i;
    query i sees slots up to length+i. Rows i >= count write nothing and their output is undefined but finite.
    """
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    for r in range(q.shape[0]):
        seq, start, n = int(sequence[r]), int(length[r]), int(count[r])
        if n == 0:
            continue
        k_cache[seq, :, start : start + n] = k[r, :, :n]
        v_cache[seq, :, start : start + n] = v[r, :, :n]
        end = start + n
        mask = _visible(torch.arange(start, end)[None], end, window)
        out[r, :n] = _masked_attention(
            q[r : r + 1, :, :n], k_cache[seq, None, :, :end], v_cache[seq, None, :, :end], mask, scale, softcap, sinks
        )[0]
    return out


@append_attention.register_fake
def _(q, k, v, k_cache, v_cache, sequence, length, count, scale, window, softcap, sinks):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op("dspark::scratch_attention", mutates_args=("k_scratch", "v_scratch"))
def scratch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scratch: Tensor,
    v_scratch: Tensor,
    length: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of unconfirmed tokens (verify): live slots are read, new keys and values go to scratch only.

    b = B; k_scratch [B,G,N,D], v_scratch [B,G,N,Dv], S <= N. Query i sees live slots < length and scratch rows <= i.
    """
    width = q.shape[2]
    k_scratch[:, :, :width] = k
    v_scratch[:, :, :width] = v
    rows = []
    for r in range(q.shape[0]):
        n = int(length[r])
        keys = torch.cat([k_cache[r, :, :n], k[r]], dim=1)[None]
        values = torch.cat([v_cache[r, :, :n], v[r]], dim=1)[None]
        mask = _visible(torch.arange(n, n + width)[None], n + width, window)
        rows.append(_masked_attention(q[r : r + 1], keys, values, mask, scale, softcap, sinks))
    return torch.cat(rows)


@scratch_attention.register_fake
def _(q, k, v, k_cache, v_cache, k_scratch, v_scratch, length, scale, window, softcap, sinks):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op("dspark::commit_scratch", mutates_args=("k_cache", "v_cache"))
def commit_scratch(
    k_cache: Tensor, v_cache: Tensor, k_scratch: Tensor, v_scratch: Tensor, length: Tensor, accepted: Tensor
) -> None:
    """Moves the first ``accepted[r]`` scratch rows of each sequence to slots from ``length[r]``; int32 [B] each."""
    for r in range(k_cache.shape[0]):
        n, m = int(length[r]), int(accepted[r])
        k_cache[r, :, n : n + m] = k_scratch[r, :, :m]
        v_cache[r, :, n : n + m] = v_scratch[r, :, :m]


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


@torch.library.custom_op("dspark::expert_linear", mutates_args=())
def expert_linear(x: Tensor, weight: Tensor, expert: Tensor) -> Tensor:
    """Each row through its own expert's weight: y[r] = x[r] @ weight[expert[r]].T.

    x [R,K], weight [E,N,K], expert int64 [R] -> [R,N]. Shazeer et al. 2017 (arXiv 1701.06538), one projection of eq. 1.
    """
    return torch.bmm(weight[expert], x.unsqueeze(-1)).squeeze(-1)


@expert_linear.register_fake
def _(x, weight, expert):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[1])
