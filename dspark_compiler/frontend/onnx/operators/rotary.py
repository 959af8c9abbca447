"""RotaryEmbedding of ONNX (opset 23) and of ONNX Runtime (Su et al. 2021, eq. 34).

R rotated elements of a head's D; tables hold R/2 columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import dspark_compiler.graph.ops  # noqa: F401  (defines torch.ops.dspark)

_aten, _dspark = torch.ops.aten, torch.ops.dspark


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """ONNX's: x [b,H,S,D] or [b,S,H*D]; cos and sin [b,S,R/2], or tables [P,R/2] that positions [b,S] look up."""
    if positions is not None:
        cos, sin = (_aten.embedding(table, positions.long()) for table in (cos, sin))
    cos, sin = (table.unsqueeze(1) for table in (cos, sin))
    if interleaved:
        return _by_heads(x, num_heads, lambda heads: _neighbours(heads, cos, sin, rotary_embedding_dim))
    wide = [torch.cat([table, table], dim=-1) for table in (cos, sin)]
    return rotary(x, *wide, num_heads=num_heads, rotary_embedding_dim=rotary_embedding_dim)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int = 0, rotary_embedding_dim: int = 0) -> Tensor:
    """dspark::Rotary, halves of a head rotated: x [b,H,S,D] or [b,S,H*D]; cos and sin [b,1,S,R]."""
    return _by_heads(x, num_heads, lambda heads: _halves(heads, cos, sin, rotary_embedding_dim))


def contrib_rotary_embedding(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
    is_packed_batching: int = 0,
) -> Tensor:
    """ONNX Runtime's: the same with the inputs in another order; the number of heads may follow from the tables."""
    if x.ndim == 3 and num_heads == 0:
        num_heads = x.shape[-1] // (2 * cos.shape[-1])
    return rotary_embedding(
        x,
        cos,
        sin,
        positions,
        interleaved=interleaved,
        num_heads=num_heads,
        rotary_embedding_dim=rotary_embedding_dim,
    )


def _by_heads(x: Tensor, num_heads: int, rotated: Callable[[Tensor], Tensor]) -> Tensor:
    """Heads [b,H,S,D] taken out of [b,S,H*D] where they are in there, rotated, and put back."""
    if x.ndim == 4:
        return rotated(x)
    b, width, depth = x.shape
    heads = x.view(b, width, num_heads, depth // num_heads).transpose(1, 2)
    return rotated(heads).transpose(1, 2).reshape(b, width, depth)


def _halves(x: Tensor, cos: Tensor, sin: Tensor, size: int) -> Tensor:
    """The first half of the rotated elements with the second; cos and sin [b,1,S,R]."""
    size = size or x.shape[-1]
    if size < x.shape[-1]:
        return torch.cat([_halves(x[..., :size], cos, sin, size), x[..., size:]], dim=-1)
    shape = (x.shape[0], 1, x.shape[2], size)
    rotated: Tensor = _dspark.rope(x, cos.expand(shape), sin.expand(shape))
    return rotated


def _neighbours(x: Tensor, cos: Tensor, sin: Tensor, size: int) -> Tensor:
    """Each two neighbours with one another; cos and sin [b,1,S,R/2]."""
    size = size or x.shape[-1]
    pairs = x[..., :size].reshape(*x.shape[:-1], size // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    return turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], dim=-1)
