"""Transcendental functions as vectorisable TIR: calls into libm would run a lane at a time."""

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

Expr = Any

_LOG2E = 1.4426950408889634
# ln 2 in two parts, so that x - n*ln2 keeps all bits (Cody & Waite 1980).
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on [-ln2/2, ln2/2], the coefficients of Cephes' expf.
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_UNDERFLOW = -87.3
_OVERFLOW = 88.3


def exp(x: Expr) -> Expr:
    """The exponential in float32, relative error about 1e-7; exactly 0 below -87.3, saturating above 88.3."""
    clamped = T.max(T.min(x, T.float32(_OVERFLOW)), T.float32(_UNDERFLOW))
    n = T.floor(clamped * T.float32(_LOG2E) + T.float32(0.5))
    r = clamped - n * T.float32(_LN2_HIGH) - n * T.float32(_LN2_LOW)
    poly = T.float32(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        poly = poly * r + T.float32(coefficient)
    value = poly * r * r + r + T.float32(1.0)
    power = T.reinterpret("float32", (T.cast(n, "int32") + T.int32(127)) << T.int32(23))
    return T.Select(x < T.float32(_UNDERFLOW), T.float32(0.0), value * power)


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent, as 1 - 2 / (exp(2x) + 1); absolute error about 1e-7."""
    return T.float32(1.0) - T.float32(2.0) / (exp(x * T.float32(2.0)) + T.float32(1.0))


def sigmoid(x: Expr) -> Expr:
    """The logistic function 1 / (1 + exp(-x))."""
    return T.float32(1.0) / (T.float32(1.0) + exp(T.float32(0.0) - x))


def load_weight(buffer: Any, index: Sequence[Expr]) -> Expr:
    """A weight as float32; bfloat16 is stored as uint16, the upper half of a float32's bits."""
    value = buffer[tuple(index)]
    if buffer.dtype == "uint16":
        return T.reinterpret("float32", T.cast(value, "uint32") << T.uint32(16))
    if buffer.dtype == "float32":
        return value
    return T.cast(value, "float32")
