"""A product with gathered expert weights becomes ``dspark::expert_linear``, which reads them where they lie.

Captured mixture-of-experts models copy each token's expert weights together and multiply in one batch. That is right,
but for a prefill of a large model the copy alone is tens of gigabytes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dspark_compiler.graph.program import Program, Role
from dspark_compiler.graph.rewrite import Bindings, Op, Rule, Var, apply_rules, emit
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten, dspark = torch.ops.aten, torch.ops.dspark


class WeightTimesColumn(Rule):
    """squeeze(bmm(W[expert], unsqueeze(x))), W [E, out, in]."""

    pattern: ClassVar[Any] = Op(
        aten.squeeze.dims,
        Op(aten.bmm.default, Var("gathered"), Op(aten.unsqueeze.default, Var("x"), Var("axis"))),
        Var("dims"),
    )
    axis: ClassVar[int] = 2  # where x got its axis of one, and the product loses it
    order: ClassVar[list[int] | None] = None  # how W's axes have to be swapped

    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """See Rule.check."""
        gathered = found["gathered"]
        if gathered.target is not aten.index.Tensor or len(gathered.args[1]) != 1:
            return f"{gathered.name} is not gathered by one index"
        weight, (expert,) = gathered.args
        if weight.meta.get("role") is not Role.PARAM or len(spec_of(weight).shape) != 3:
            return f"{weight.name} is not a weight of several experts"
        if len(spec_of(expert).shape) != 1 or len(spec_of(found["x"]).shape) != 2:
            return "experts are not chosen one a row"
        if found["axis"] % 3 != self.axis or [dim % 3 for dim in found["dims"]] != [self.axis]:
            return "the product keeps an axis of one"
        return None

    def rewrite(self, node: fx.Node, found: Bindings) -> fx.Node:
        """See Rule.rewrite."""
        weight, (expert,) = found["gathered"].args
        if self.order is not None:
            weight = emit(node, aten.permute.default, (weight, self.order))  # fold_constants puts it into the param
        return emit(node, dspark.expert_linear.default, (found["x"], weight, expert))


class RowTimesWeight(WeightTimesColumn):
    """squeeze(bmm(unsqueeze(x), W[expert])), W [E, in, out] (gpt-oss)."""

    pattern: ClassVar[Any] = Op(
        aten.squeeze.dims,
        Op(aten.bmm.default, Op(aten.unsqueeze.default, Var("x"), Var("axis")), Var("gathered")),
        Var("dims"),
    )
    axis: ClassVar[int] = 1
    order: ClassVar[list[int] | None] = [0, 2, 1]


@dataclass(frozen=True)
class FuseExperts(Pass):
    """See the module."""

    name: ClassVar[str] = "fuse_experts"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        rules = (WeightTimesColumn(), RowTimesWeight())
        return PassResult.of_rules(program, (apply_rules(entry, rules) for entry in program.entries.values()))
