"""Operators on each element by itself, by the ONNX standard's names."""

import math
import operator as python
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dspark_compiler.frontend.onnx.types import dtype_of


def divide(a: Tensor, b: Any) -> Tensor:
    """Div: of integers, towards zero."""
    if not a.dtype.is_floating_point:
        return torch.div(a, b, rounding_mode="trunc")
    return torch.true_divide(a, b)


def modulo(a: Tensor, b: Any, *, fmod: int = 0) -> Tensor:
    """Mod: the sign of the divisor, or with ``fmod`` that of the dividend."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def power(a: Tensor, b: Any) -> Tensor:
    """Pow: the result has the type of the base."""
    result = torch.pow(a, b)
    return result if result.dtype == a.dtype else result.to(a.dtype)


def largest(*values: Any) -> Tensor:
    """Max of all."""
    return _folded(torch.maximum, values)


def smallest(*values: Any) -> Tensor:
    """Min of all."""
    return _folded(torch.minimum, values)


def total(*values: Any) -> Tensor:
    """Sum of all."""
    return _folded(python.add, values)


def _folded(function: Any, values: tuple[Any, ...]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    assert isinstance(result, Tensor)
    return result


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clip."""
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    return x.clamp(low, high)


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Cast."""
    return x.to(dtype_of(to, "Cast"))  # type: ignore[arg-type]


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:
    """CastLike."""
    return x.to(like.dtype)


def where(condition: Tensor, a: Any, b: Any) -> Tensor:
    """Where."""
    return torch.where(condition, a, b)


def dropout(x: Tensor, ratio: Any = None, training: Any = None, *, seed: int = 0) -> Tensor:
    """Dropout as a deployed model has it: nothing is dropped."""
    return x


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gelu, exact or by tanh (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return functional.gelu(x, approximate=approximate)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """FastGelu: by tanh, after a bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """BiasGelu: exact, after a bias."""
    return functional.gelu(x + bias)


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """QuickGelu: x * sigmoid(alpha x); silu where alpha is 1."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Swish, of opset 24: x * sigmoid(alpha x)."""
    return quick_gelu(x, alpha=alpha)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """LeakyRelu."""
    return functional.leaky_relu(x, alpha)


def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """IsInf of either sign."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_positive:
        found = found | (x == math.inf)
    if detect_negative:
        found = found | (x == -math.inf)
    return found
