"""x * cos + rotate_half(x) * sin becomes one ``dspark::rope``.

Su et al. 2021 (arXiv 2104.09864, eq. 34) in the half-split form of GPT-NeoX, which transformers uses for most families:
rotate_half([x1, x2]) = [-x2, x1]. Other forms (interleaved pairs, cos and sin of half the width) stay as they are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dspark_compiler.graph.program import Program
from dspark_compiler.graph.rewrite import Bindings, Op, Rule, Var, apply_rules, emit
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten, dspark = torch.ops.aten, torch.ops.dspark


class HalfSplitRope(Rule):
    """The sum of x * cos and its rotated halves * sin."""

    pattern: ClassVar[Any] = Op(
        aten.add.Tensor,
        Op(aten.mul.Tensor, Var("x"), Var("cos"), commutative=True),
        Op(aten.mul.Tensor, Op(aten.cat.default, Var("halves"), Var("axis")), Var("sin"), commutative=True),
        commutative=True,
    )

    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """See Rule.check."""
        x = found["x"]
        if not isinstance(x, fx.Node) or len(spec_of(x).shape) != 4:
            return "what is rotated is not [batch, heads, tokens, size]"
        shape = spec_of(x).shape
        if not _is_rotated(found["halves"], x, shape[-1]):
            return f"the other product is not of {x.name}'s halves swapped and the first negated"
        for name in ("cos", "sin"):
            table = found[name]
            if not isinstance(table, fx.Node) or spec_of(table).shape != (shape[0], 1, shape[2], shape[3]):
                return f"{name} is not [batch, 1, tokens, size]"
        if any(spec_of(found[name]).dtype != spec_of(node).dtype for name in ("x", "cos", "sin")):
            return "types differ"
        return None

    def rewrite(self, node: fx.Node, found: Bindings) -> fx.Node:
        """See Rule.rewrite."""
        return emit(node, dspark.rope.default, (found["x"], found["cos"], found["sin"]))


def _is_rotated(halves: Any, x: fx.Node, size: int) -> bool:
    """Whether ``halves`` are [-x[..., size/2:], x[..., :size/2]]."""
    if not isinstance(halves, list | tuple) or len(halves) != 2 or size % 2:
        return False
    negated, first = halves
    if negated.target is not aten.neg.default:
        return False
    return _is_slice(negated.args[0], x, size // 2, size) and _is_slice(first, x, 0, size // 2)


def _is_slice(node: fx.Node, x: fx.Node, start: int, end: int) -> bool:
    return node.target is aten.slice.Tensor and node.args == (x, 3, start, end)


@dataclass(frozen=True)
class FuseRope(Pass):
    """See the module."""

    name: ClassVar[str] = "fuse_rope"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        return PassResult.of_rules(
            program, (apply_rules(entry, (HalfSplitRope(),)) for entry in program.entries.values())
        )
