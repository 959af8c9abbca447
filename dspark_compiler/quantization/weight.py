"""A quantized weight, and how one is made of a plain one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark_compiler.graph.quantized_ops import dequantized
from dspark_compiler.quantization.weight_format import WeightFormat

_LARGEST = {"int8": 127.0, "int4": 7.0, "float8_e4m3": 448.0}
# Shares of a group's largest element that may become the largest code: what lies beyond is clipped, the rest finer.
_CLIPS = tuple(1.0 - step / 20 for step in range(8))
_GROUP_SCALES = torch.float16  # a group's scale is read with it: half the bytes, 5e-4 of rounding before the codes'


@dataclass(frozen=True)
class QuantizedWeight:
    """W[n,k] = codes[n,k] * scales[n,g] (+ offsets[n,g]), g = k // (K/G).

    codes [N,K] are int8 (-8 to 7 where the format is int4) or float8_e4m3fn; scales and offsets float32 [N,G].
    """

    format: WeightFormat
    codes: Tensor
    scales: Tensor
    offsets: Tensor | None = None

    def dequantized(self) -> Tensor:
        """The float32 weight [N,K] it stands for."""
        return dequantized(self.codes, self.scales, self.offsets)


def quantize(
    weight: Tensor, form: WeightFormat, importance: Tensor | None = None, *, clip: bool = True
) -> QuantizedWeight:
    """Rounds W [N,K] to the nearest codes, with symmetric scales.

    The scale of a group is the one of a few, the largest element's and smaller, that leaves the smallest squared error,
    columns weighted by ``importance`` [K], the mean square of what they are multiplied by, where it is known; without
    ``clip`` it is the largest element's.
    e4m3 codes have the same relative error at any scale: for them there is nothing to search.
    """
    assert not form.offsets
    features, depth = weight.shape
    groups = weight.float().view(features, form.groups(depth), -1)
    peak = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    weights = torch.ones(depth, device=weight.device) if importance is None else importance.float()
    weights = weights.view(1, form.groups(depth), -1)
    best = codes = scales = None
    for share in _CLIPS if clip and form.codes != "float8_e4m3" else (1.0,):
        scale = peak * (share / _LARGEST[form.codes])
        if form.group:
            scale = scale.to(_GROUP_SCALES).float().clamp(min=2.0**-24)
        found = _rounded(groups / scale, form)
        error = ((found * scale - groups).square() * weights).sum(-1, keepdim=True)
        if best is None or codes is None or scales is None:
            best, codes, scales = error, found, scale
            continue
        better = error < best
        best = torch.where(better, error, best)
        codes, scales = torch.where(better, found, codes), torch.where(better, scale, scales)
    assert codes is not None
    assert scales is not None
    kind = torch.float8_e4m3fn if form.codes == "float8_e4m3" else torch.int8
    return QuantizedWeight(form, codes.view(features, depth).to(kind), scales[..., 0].contiguous())


def _rounded(ratio: Tensor, form: WeightFormat) -> Tensor:
    largest = _LARGEST[form.codes]
    if form.codes == "float8_e4m3":
        return ratio.clamp(-largest, largest).to(torch.float8_e4m3fn).float()
    return ratio.round().clamp(-largest - (form.codes == "int4"), largest)
