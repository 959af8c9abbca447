"""What kernels do besides their own operator: a step of few tokens has no time for launches."""

import math

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.cuda.operands import compute_dtype, is_packed_linear
from dspark_compiler.lowering.epilogues import Epilogues, find_epilogues
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.schedules.cuda.stream_schedule import FEW_ROWS

_RMS_NORM = torch.ops.dspark.rms_norm.default


def find_fusions(entry: EntryPoint, plan: LayoutPlan) -> Epilogues:
    """Epilogues of linears, and the norms that linears of few rows do around their products (late_norm.py)."""
    found = find_epilogues(entry, plan)
    for node in entry.graph.graph.nodes:
        if node.target is _RMS_NORM and _is_read_by_streams(node, plan):
            found.absorbed.add(node)
    return found


def absorbed_norm(x: fx.Node, found: Epilogues) -> fx.Node | None:
    """The norm whose result ``x`` is, if whoever reads it has to do it."""
    return x if x.target is _RMS_NORM and x in found.absorbed else None


def fed_norm(node: fx.Node, found: Epilogues) -> fx.Node | None:
    """The one absorbed norm that reads a node, if there is one."""
    norms = [user for user in node.users if user in found.absorbed and user.target is _RMS_NORM]
    return norms[0] if len(norms) == 1 else None


def _is_read_by_streams(norm: fx.Node, plan: LayoutPlan) -> bool:
    x, weight, _ = args_of(norm)
    # x times the norm's weight stays within bfloat16, but not within float16.
    if compute_dtype(plan) != "bfloat16" or weight is None or shape_of(x)[-1] % 8:
        return False
    if math.prod(shape_of(x)[:-1]) > FEW_ROWS:
        return False
    return bool(norm.users) and all(is_packed_linear(user, plan) and user.args[0] is norm for user in norm.users)
