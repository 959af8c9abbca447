"""Activations that gate one half of a linear's output by the other."""

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Expr

_GELU = (0.7978845608028654, 0.044715)  # sqrt(2 / pi), and the cubic term of the tanh form


def silu(x: Expr) -> Expr:
    """The value x / (1 + exp(-x))."""
    return x / (T.float32(1.0) + T.exp(T.float32(0.0) - x))


def gelu_tanh(x: Expr) -> Expr:
    """Gaussian error linear unit, in its tanh form."""
    scale, cubic = _GELU
    inner = x * T.float32(scale) * (T.float32(1.0) + T.float32(cubic) * x * x)
    # tanh by the logistic function, which no driver computes too roughly.
    return x / (T.float32(1.0) + T.exp(T.float32(-2.0) * inner))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {"silu": silu, "gelu_tanh": gelu_tanh}
