"""What kernels do besides their own operator: a step of few tokens has no time for launches."""

import math

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.epilogues import Epilogues, find_epilogues
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.lowering.simt.few_rows import streams

_RMS_NORM = torch.ops.dspark.rms_norm.default


def find_fusions(entry: EntryPoint, plan: LayoutPlan) -> Epilogues:
    """Epilogues of linears, and the norms of what linears of few rows read."""
    found = find_epilogues(entry, plan)
    for node in entry.graph.graph.nodes:
        if node.target is _RMS_NORM and _is_read_by_streams(node, entry, plan):
            found.absorbed.add(node)
    return found


def absorbed_norm(call: LinearCall, entry: EntryPoint) -> fx.Node | None:
    """The norm whose result a linear with a packed weight reads, if it does it itself, whoever else reads that."""
    return call.x if call.bias is not call.x and _can_be_streamed(call.x, entry) else None


def _is_read_by_streams(norm: fx.Node, entry: EntryPoint, plan: LayoutPlan) -> bool:
    is_streamed = _can_be_streamed(norm, entry) and bool(norm.users)
    return is_streamed and all(_streams(user, norm, entry, plan) for user in norm.users)


def _can_be_streamed(node: fx.Node, entry: EntryPoint) -> bool:
    is_norm = node.target is _RMS_NORM and args_of(node)[1] is not None
    return is_norm and streams(entry, math.prod(shape_of(node)[:-1]))


def _streams(user: fx.Node, norm: fx.Node, entry: EntryPoint, plan: LayoutPlan) -> bool:
    call = LinearCall.of(user)
    return call is not None and absorbed_norm(call, entry) is norm and plan.is_packed(call.weight)
