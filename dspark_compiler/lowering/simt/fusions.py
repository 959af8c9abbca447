"""What kernels do besides their own operator: a step of few tokens has no time for launches."""

import math

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.epilogues import Epilogues, find_epilogues
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.schedules.simt.row_schedule import FEW_ROWS

_RMS_NORM = torch.ops.dspark.rms_norm.default


def find_fusions(entry: EntryPoint, plan: LayoutPlan) -> Epilogues:
    """Epilogues of linears, and the norms of what linears of few rows read."""
    found = find_epilogues(entry, plan)
    for node in entry.graph.graph.nodes:
        if node.target is _RMS_NORM and _is_read_by_streams(node, plan):
            found.absorbed.add(node)
    return found


def absorbed_norm(call: LinearCall) -> fx.Node | None:
    """The norm whose result a linear with a packed weight reads, if it does it itself, whoever else reads that."""
    return call.x if call.bias is not call.x and _can_be_streamed(call.x) else None


def _is_read_by_streams(norm: fx.Node, plan: LayoutPlan) -> bool:
    return _can_be_streamed(norm) and bool(norm.users) and all(_streams(user, norm, plan) for user in norm.users)


def _can_be_streamed(node: fx.Node) -> bool:
    is_norm = node.target is _RMS_NORM and args_of(node)[1] is not None
    return is_norm and math.prod(shape_of(node)[:-1]) <= FEW_ROWS


def _streams(user: fx.Node, norm: fx.Node, plan: LayoutPlan) -> bool:
    call = LinearCall.of(user)
    return call is not None and absorbed_norm(call) is norm and plan.is_packed(call.weight)
