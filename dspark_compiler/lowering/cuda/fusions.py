"""What kernels do besides their own operator: a step of few tokens has no time for launches."""

import math

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.cuda.operands import is_packed_linear
from dspark_compiler.lowering.epilogues import Epilogues, find_epilogues
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.schedules.cuda.stream_linear import EARLY_NORM_ROWS

FEW_ROWS = 32  # up to so many rows a linear streams its weight

_RMS_NORM = torch.ops.dspark.rms_norm.default


def find_fusions(entry: EntryPoint, plan: LayoutPlan) -> Epilogues:
    """Epilogues of linears, and the norms that linears of few rows do as they read."""
    found = find_epilogues(entry, plan)
    for node in entry.graph.graph.nodes:
        if node.target is _RMS_NORM and _is_read_by_streams(node, plan):
            found.absorbed.add(node)
    return found


def absorbed_norm(x: fx.Node, found: Epilogues) -> fx.Node | None:
    """The norm whose result ``x`` is, if whoever reads it has to do it."""
    return x if x.target is _RMS_NORM and x in found.absorbed else None


def _is_read_by_streams(norm: fx.Node, plan: LayoutPlan) -> bool:
    x, weight, _ = args_of(norm)
    if weight is None or math.prod(shape_of(x)[:-1]) > EARLY_NORM_ROWS or shape_of(x)[-1] % 8:
        return False
    return bool(norm.users) and all(is_packed_linear(user, plan) and user.args[0] is norm for user in norm.users)
