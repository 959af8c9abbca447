"""RotaryEmbedding of ONNX (opset 23) and of ONNX Runtime (Su et al. 2021, eq. 34).

R rotated elements of a head's D; tables hold R/2 columns.
"""

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
    if x.ndim == 4:
        return _rotated(x, cos, sin, bool(interleaved), rotary_embedding_dim)
    b, width, depth = x.shape
    heads = x.view(b, width, num_heads, depth // num_heads).transpose(1, 2)
    rotated = _rotated(heads, cos, sin, bool(interleaved), rotary_embedding_dim)
    return rotated.transpose(1, 2).reshape(b, width, depth)


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


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: int) -> Tensor:
    """X [b,H,S,D], cos and sin [b,S,R/2]."""
    size = size or x.shape[-1]
    if size < x.shape[-1]:
        return torch.cat([_rotated(x[..., :size], cos, sin, interleaved, size), x[..., size:]], dim=-1)
    cos, sin = (table.unsqueeze(1) for table in (cos, sin))
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], size // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    shape = (x.shape[0], 1, x.shape[2], size)
    whole = [torch.cat([table, table], dim=-1).expand(shape) for table in (cos, sin)]
    rotated: Tensor = _dspark.rope(x, *whole)
    return rotated
