"""Activation-aware scales of a linear's inputs (AWQ, Lin et al. 2023, arXiv 2306.00978, sec. 3.2).

Q(W diag(s)) (x / s) is W x up to rounding, and a column with a larger s is rounded more finely at the cost of those
that share its group. Columns that meet large activations gain: s = a^alpha, a the mean magnitude of an input, alpha
by grid search on the error of the outputs (eqs. 4 and 5).
"""

import torch
from torch import Tensor

from dspark_compiler.quantization.weight import quantize
from dspark_compiler.quantization.weight_format import WeightFormat

_STEPS = 10  # of the grid of alpha from 0, which leaves all as it is, to 1


def channel_scales(weight: Tensor, inputs: Tensor, form: WeightFormat) -> Tensor | None:
    """The best s [K] for W [N,K] over inputs [R,K]; None where nothing beats leaving all as it is."""
    weight, inputs = weight.float(), inputs.float()
    magnitude = inputs.abs().mean(0).clamp(min=1e-6)
    exact = inputs @ weight.T
    best, chosen = _error(weight, inputs, exact, torch.ones_like(magnitude), form), None
    for step in range(1, _STEPS + 1):
        scales = magnitude ** (step / _STEPS)
        scales = scales / (scales.max() * scales.min()).sqrt()  # about 1, lest float16 scales run out of range
        error = _error(weight, inputs, exact, scales, form)
        if error < best:
            best, chosen = error, scales
    return chosen


def _error(weight: Tensor, inputs: Tensor, exact: Tensor, scales: Tensor, form: WeightFormat) -> float:
    """Mean squared error of the outputs with the weight's columns multiplied by ``scales`` and rounded."""
    rounded = quantize(weight * scales, form, clip=False).dequantized() / scales
    return float((inputs @ rounded.T - exact).square().mean())
