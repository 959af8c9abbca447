"""Small sums of operators that have one of their own in torch become that one."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from dspark_compiler.frontend.onnx.graph import OURS

_ROOT_HALF, _ROOT_TWO, _ROOT_TWO_OVER_PI, _CUBE = 0.7071067811865476, 1.4142135623730951, 0.7978845608028654, 0.044715


def fuse(model: ir.Model) -> None:
    """Rewrites the model's graph in place: 1/sqrt, silu, both forms of gelu."""
    _RULES.apply_to_model(model)


def _rsqrt(op: Any, x: Any) -> Any:
    return op.Reciprocal(op.Sqrt(x))


def _one_over_sqrt(op: Any, x: Any) -> Any:
    return op.Div(1.0, op.Sqrt(x))


def _silu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _gelu_of_half(op: Any, x: Any) -> Any:
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Div(x, _ROOT_TWO)), 1.0))


def _gelu_of_half_times(op: Any, x: Any) -> Any:
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Mul(x, _ROOT_HALF)), 1.0))


def _half_of_gelu(op: Any, x: Any) -> Any:
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, _ROOT_TWO)), 1.0)), 0.5)


def _tanh_gelu(op: Any, x: Any) -> Any:
    cube = op.Mul(op.Pow(x, 3.0), _CUBE)
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(op.Mul(op.Add(x, cube), _ROOT_TWO_OVER_PI)), 1.0))


def _new_rsqrt(op: Any, x: Any) -> Any:
    return op.Rsqrt(x, _domain=OURS)


def _new_silu(op: Any, x: Any) -> Any:
    return op.Silu(x, _domain=OURS)


def _new_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="none", _domain=OURS)


def _new_tanh_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="tanh", _domain=OURS)


_RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_rsqrt, _new_rsqrt),
        pattern.RewriteRule(_one_over_sqrt, _new_rsqrt),
        pattern.RewriteRule(_silu, _new_silu),
        pattern.RewriteRule(_gelu_of_half, _new_gelu),
        pattern.RewriteRule(_gelu_of_half_times, _new_gelu),
        pattern.RewriteRule(_half_of_gelu, _new_gelu),
        pattern.RewriteRule(_tanh_gelu, _new_tanh_gelu),
    ],
    commute=True,
)
