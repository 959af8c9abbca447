"""Which values only linears read that round them to float16 anyway: these are handed over so (simt/eighths.py)."""

import math

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.epilogues import Epilogues, Gate
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.simt.fusions import absorbed_norm
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS
from dspark_compiler.schedules.vulkan.matrices import SIDE
from dspark_compiler.schedules.vulkan.matrix_cut import MatrixCut

_RESHAPE = torch.ops.aten.reshape.default
_ATTENTION = frozenset(
    (
        torch.ops.dspark.append_attention.default,
        torch.ops.dspark.scratch_attention.default,
        torch.ops.dspark.block_attention.default,
    )
)


def find_eighths(entry: EntryPoint, plan: LayoutPlan, found: Epilogues) -> set[fx.Node]:
    """Outputs of attention and of gated linears of few rows that nobody else reads."""
    makers = [node for node in entry.graph.graph.nodes if _hands_over(node, found)]
    return {node for node in makers if _only_linears_read(node, entry, plan)}


def _hands_over(node: fx.Node, found: Epilogues) -> bool:
    return node.target in _ATTENTION or isinstance(found.matches.get(node), Gate)


def _only_linears_read(node: fx.Node, entry: EntryPoint, plan: LayoutPlan) -> bool:
    """Whether all that read a value, be it in another shape, round it."""
    return bool(node.users) and all(
        _only_linears_read(user, entry, plan) if user.target is _RESHAPE else _rounds(user, node, entry, plan)
        for user in node.users
    )


def _rounds(user: fx.Node, x: fx.Node, entry: EntryPoint, plan: LayoutPlan) -> bool:
    call = LinearCall.of(user)
    if call is None or call.x is not x or call.bias is x or call.format is not None or not plan.is_packed(call.weight):
        return False
    rows, (features, depth) = math.prod(shape_of(x)[:-1]), shape_of(call.weight)
    if rows > MOST_ROWS or depth % SIDE or absorbed_norm(call, entry) is not None:
        return False
    return MatrixCut.of(LinearWorkload(rows, features, depth, plan.params[call.weight.meta["ref"]].dtype)) is not None
