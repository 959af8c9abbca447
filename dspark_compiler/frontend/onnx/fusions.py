"""Small sums of operators that have one of their own in torch become that one."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from dspark_compiler.frontend.onnx.graph import OURS

_ROOT_HALF, _ROOT_TWO, _ROOT_TWO_OVER_PI, _CUBE = 0.7071067811865476, 1.4142135623730951, 0.7978845608028654, 0.044715


def fuse(model: ir.Model) -> None:
    """Rewrites the model's graph in place: 1/sqrt, silu, both forms of gelu."""
    present = {node.op_type for node in model.graph}
    rules = [rule for needs, found in _RULES.items() if needs in present for rule in found]
    if rules:
        pattern.RewriteRuleSet(rules, commute=True).apply_to_model(model)


def _rsqrt(op: Any, x: Any) -> Any:
    return op.Reciprocal(op.Sqrt(x))


def _one_over_sqrt(op: Any, x: Any) -> Any:
    return op.Div(1.0, op.Sqrt(x))


def _silu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _erf(op: Any, x: Any) -> Any:
    return op.Erf(op.Div(x, _ROOT_TWO))


def _erf_of_product(op: Any, x: Any) -> Any:
    return op.Erf(op.Mul(x, _ROOT_HALF))


def _tanh(op: Any, x: Any) -> Any:
    return op.Tanh(op.Mul(op.Add(x, op.Mul(op.Pow(x, 3.0), _CUBE)), _ROOT_TWO_OVER_PI))


def _gelus(inner: Callable[[Any, Any], Any], new: Callable[[Any, Any], Any]) -> list[pattern.RewriteRule]:
    """x/2 (1 + inner), with the half wherever exporters put it."""

    def half_of_x(op: Any, x: Any) -> Any:
        return op.Mul(op.Mul(x, 0.5), op.Add(inner(op, x), 1.0))

    def half_of_sum(op: Any, x: Any) -> Any:
        return op.Mul(x, op.Mul(op.Add(inner(op, x), 1.0), 0.5))

    def half_of_all(op: Any, x: Any) -> Any:
        return op.Mul(op.Mul(x, op.Add(inner(op, x), 1.0)), 0.5)

    return [pattern.RewriteRule(form, new) for form in (half_of_x, half_of_sum, half_of_all)]


def _new_rsqrt(op: Any, x: Any) -> Any:
    return op.Rsqrt(x, _domain=OURS)


def _new_silu(op: Any, x: Any) -> Any:
    return op.Silu(x, _domain=OURS)


def _new_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="none", _domain=OURS)


def _new_tanh_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="tanh", _domain=OURS)


# By an operator that a graph must have for the rules to apply.
_RULES: dict[str, list[pattern.RewriteRule]] = {
    "Reciprocal": [pattern.RewriteRule(_rsqrt, _new_rsqrt)],
    "Sqrt": [pattern.RewriteRule(_one_over_sqrt, _new_rsqrt)],
    "Sigmoid": [pattern.RewriteRule(_silu, _new_silu)],
    "Erf": [*_gelus(_erf, _new_gelu), *_gelus(_erf_of_product, _new_gelu)],
    "Tanh": _gelus(_tanh, _new_tanh_gelu),
}
