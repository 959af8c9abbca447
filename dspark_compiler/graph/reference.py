"""Reference arithmetic that several operators share, in plain torch."""

import torch
from torch import Tensor

_INF = float("inf")
# The largest value each storage type holds; a token's scale maps its largest element onto it.
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def attention_logits(q: Tensor, k: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Scores of q [b,H,S,D] against k [b,G,T,D] -> float32 [b,H,S,T], minus infinity where mask [b,G,S,T] is False."""
    group = q.shape[1] // k.shape[1]
    scores = (q.float() @ k.float().repeat_interleave(group, dim=1).mT) * scale
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    return scores.masked_fill(~mask.repeat_interleave(group, dim=1), -_INF)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor, scale: float, softcap: float, sinks: Tensor | None) -> Tensor:
    """Probabilities of q [b,H,S,D] over k [b,G,T,D] -> float32 [b,H,S,T]; ``sinks`` [H] take a part."""
    scores = attention_logits(q, k, mask, scale, softcap)
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Attention of q [b,H,S,D] to k/v [b,G,T,D] where mask [b,G,S,T] is True -> [b,S,H,Dv], softmax in float32."""
    probs = attention_weights(q, k, mask, scale, softcap, sinks)
    values = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return (probs.to(v.dtype) @ values).transpose(1, 2).contiguous()


def causal_mask(query: Tensor, key: Tensor, window: int) -> Tensor:
    """Query positions [S] and key positions [G,T] -> [G,S,T]: not later, and within the last ``window`` if any."""
    distance = query[None, :, None] - key[:, None, :]
    mask = distance >= 0
    return mask & (distance < window) if window > 0 else mask


def quantized(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [...,D] as ``dtype`` (int8 or float8_e4m3fn) and float32 scales [...]: row = stored * scale.

    The scale is the row's largest magnitude over the largest stored one; a row of zeros has scale 0.
    """
    scale = rows.float().abs().amax(-1) / _LARGEST[dtype]
    ratio = rows.float() / torch.where(scale == 0, 1.0, scale)[..., None]
    stored = ratio.round().to(dtype) if dtype is torch.int8 else ratio.clamp(-448, 448).to(dtype)
    return stored, scale
