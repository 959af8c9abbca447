"""x * rsqrt(mean(x^2) + eps), times a weight or not, becomes one ``dspark::rms_norm``.

Half-precision models square in float32 and cast back before or after the weight; the fused operator works in
float32 throughout and rounds once, at the end.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dspark_compiler.graph.program import Program
from dspark_compiler.graph.rewrite import Bindings, Maybe, OneOf, Op, Rule, Var, apply_rules, emit
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten, dspark = torch.ops.aten, torch.ops.dspark

_X = Var("x")
_SQUARE = OneOf(Op(aten.pow.Tensor_Scalar, _X, 2), Op(aten.mul.Tensor, _X, _X))
_MEAN = Op(aten.mean.dim, _SQUARE, Var("axes"), True)
_NORM = Op(
    aten.mul.Tensor,
    _X,
    Op(aten.rsqrt.default, Op(aten.add.Tensor, _MEAN, Var("eps"))),
    commutative=True,
)


class PlainNorm(Rule):
    """Without a weight."""

    pattern: ClassVar[Any] = Maybe(aten._to_copy.default, _NORM)

    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """See Rule.check."""
        x = spec_of(found["x"])
        if not isinstance(found["eps"], int | float):
            return "epsilon is not a literal"
        if [axis % len(x.shape) for axis in found["axes"]] != [len(x.shape) - 1]:
            return f"the mean runs over axes {list(found['axes'])}, not the last one"
        if _source(node, found) is None:
            return f"the norm is of {x.dtype} and its result {spec_of(node).dtype}"
        return None

    def rewrite(self, node: fx.Node, found: Bindings) -> fx.Node:
        """See Rule.rewrite."""
        args = (_source(node, found), found.get("weight"), float(found["eps"]))
        return emit(node, dspark.rms_norm.default, args)


class WeightedNorm(PlainNorm):
    """With a weight on either side."""

    pattern: ClassVar[Any] = Maybe(
        aten._to_copy.default,
        Op(aten.mul.Tensor, Maybe(aten._to_copy.default, _NORM, name="norm"), Var("weight"), commutative=True),
    )

    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """See Rule.check."""
        x, weight, norm = spec_of(found["x"]), found["weight"], found["norm"]
        if not isinstance(weight, fx.Node) or spec_of(weight).shape != x.shape[-1:]:
            return f"the factor {weight} is not a weight of {x.shape[-1]} numbers"
        if len(norm.users) > 1:
            return f"the norm {norm.name} has other uses than the weighted one"
        if spec_of(norm).dtype not in (x.dtype, spec_of(node).dtype):
            return f"the norm is rounded to {spec_of(norm).dtype} on the way"
        return super().check(node, found)


def _source(node: fx.Node, found: Bindings) -> fx.Node | None:
    """What to norm so that the result has the node's type: x itself, or what x was cast from; None if neither."""
    x, dtype = found["x"], spec_of(node).dtype
    assert isinstance(x, fx.Node)
    if spec_of(x).dtype == dtype:
        return x
    origin = x.args[0] if x.target is aten._to_copy.default else None
    return origin if isinstance(origin, fx.Node) and spec_of(origin).dtype == dtype else None


@dataclass(frozen=True)
class FuseRMSNorm(Pass):
    """See the module."""

    name: ClassVar[str] = "fuse_rms_norm"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        return PassResult.of_rules(
            program, (apply_rules(entry, (WeightedNorm(), PlainNorm())) for entry in program.entries.values())
        )
