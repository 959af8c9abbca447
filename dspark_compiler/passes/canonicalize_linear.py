"""Every product with a weight becomes ``aten.linear`` with the weight as [out, in], so that lowering sees one form.

Models write it as mm, addmm or matmul too (GPT-2 keeps its weights as [in, out] and flattens the batch around each
product). The transpose this puts on a weight is folded into it by fold_constants.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dspark_compiler.graph.program import Program, Role
from dspark_compiler.graph.rewrite import Bindings, OneOf, Op, Rule, Var, apply_rules, emit
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten = torch.ops.aten

_X, _WEIGHT, _BIAS = Var("x"), Var("weight"), Var("bias")


class MatmulToLinear(Rule):
    """mm(x, w), matmul(x, w), addmm(b, x, w) -> linear(x, w transposed, b), where w comes from a param."""

    pattern: ClassVar[Any] = OneOf(
        Op(aten.mm.default, _X, _WEIGHT),
        Op(aten.matmul.default, _X, _WEIGHT),
        Op(aten.addmm.default, _BIAS, _X, _WEIGHT),
    )

    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """See Rule.check."""
        weight = found["weight"]
        stored = weight.args[0] if weight.target is aten.permute.default else weight
        if stored.meta.get("role") is not Role.PARAM:
            return "a product of two values, neither a weight"
        if len(spec_of(weight).shape) != 2:
            return f"the weight has {len(spec_of(weight).shape)} axes, not 2"
        bias = found.get("bias")
        if bias is not None and len(spec_of(bias).shape) != 1:
            return f"the bias has {len(spec_of(bias).shape)} axes, not 1"
        return None

    def rewrite(self, node: fx.Node, found: Bindings) -> fx.Node:
        """See Rule.rewrite."""
        weight = found["weight"]
        if weight.target is aten.permute.default:
            weight = weight.args[0]  # the only permutation of two axes that canonicalize leaves is their swap
        else:
            weight = emit(node, aten.permute.default, (weight, [1, 0]))
        bias = found.get("bias")
        return emit(node, aten.linear.default, (found["x"], weight) if bias is None else (found["x"], weight, bias))


class Unflatten(Rule):
    """reshape(linear(reshape(x))) -> linear(x): the product keeps the leading axes, nothing need be flattened."""

    _flat: ClassVar[Any] = Op(aten.reshape.default, _X, Var("flat_shape"))
    pattern: ClassVar[Any] = Op(
        aten.reshape.default,
        OneOf(
            Op(aten.linear.default, _flat, _WEIGHT, name="linear"),
            Op(aten.linear.default, _flat, _WEIGHT, _BIAS, name="linear"),
        ),
        Var("shape"),
    )

    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """See Rule.check."""
        if len(found["linear"].users) > 1:
            return "the flattened product has other uses"
        if found["shape"][-1] != spec_of(found["linear"]).shape[-1]:
            return "the reshape splits the product's last axis"
        return None

    def rewrite(self, node: fx.Node, found: Bindings) -> fx.Node:
        """See Rule.rewrite."""
        x, linear = found["x"], found["linear"]
        shape = [*found["shape"][:-1], spec_of(found["weight"]).shape[1]]
        if list(spec_of(x).shape) != shape:
            x = emit(node, aten.reshape.default, (x, shape))
        return emit(node, aten.linear.default, (x, *linear.args[1:]))


@dataclass(frozen=True)
class CanonicalizeLinear(Pass):
    """See the module."""

    name: ClassVar[str] = "canonicalize_linear"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        rules, entries = (MatmulToLinear(), Unflatten()), program.entries.values()
        return PassResult.of_rules(program, (apply_rules(entry, (rule,)) for rule in rules for entry in entries))
