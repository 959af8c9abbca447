"""The ``dspark::`` operators over quantized weights, with torch reference semantics.

N outputs, K inputs, G groups of K/G columns that share a scale.
"""

import torch
from torch import Tensor


@torch.library.custom_op("dspark::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, offsets: Tensor | None, bits: int
) -> Tensor:
    """The value x @ W.T [+ bias] with W[n,k] = codes[n,k] * scales[n,g] [+ offsets[n,g]], g the group of column k.

    x [..., K], codes [N,K] int8 or float8_e4m3fn, scales and offsets [N,G] -> [..., N]. ``bits`` is what a code takes
    where it is stored: 8, or 4 for codes from -8 to 7.
    """
    weight = dequantized(codes, scales, offsets)
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)


@quantized_linear.register_fake
def _(x, codes, scales, bias, offsets, bits):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@torch.library.custom_op("dspark::quantized_embedding", mutates_args=())
def quantized_embedding(codes: Tensor, scales: Tensor, ids: Tensor) -> Tensor:
    """Rows of W[n,k] = codes[n,k] * scales[n,0] in float32: codes [N,K], scales [N,1], ids int64 [...] -> [..., K]."""
    return codes[ids].float() * scales[ids].float()


@quantized_embedding.register_fake
def _(codes, scales, ids):  # type: ignore[no-untyped-def]
    return scales.new_empty(*ids.shape, codes.shape[1])


def dequantized(codes: Tensor, scales: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The float32 weight [N,K] that codes [N,K], scales and offsets [N,G] stand for."""
    features, depth = codes.shape
    weight = codes.float().view(features, scales.shape[1], -1) * scales.float()[..., None]
    if offsets is not None:
        weight = weight + offsets.float()[..., None]
    return weight.view(features, depth)
