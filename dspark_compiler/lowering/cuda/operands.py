"""Which activations are kept in the type that is computed with: those that nothing but products reads.

Everything else is float32, the residual stream first of all: its bytes do not matter beside the weights', its
rounding errors would add up over layers.
"""

import math
from typing import Any

import torch
from torch import fx
from tvm import relax

from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.schedules.cuda.layouts import FragmentLayouts

_aten = torch.ops.aten


def compute_dtype(plan: LayoutPlan) -> str:
    """The type of products' operands: "bfloat16" or "float16"."""
    return _layouts(plan).dtype


def arch_of(plan: LayoutPlan) -> str:
    """The architecture that is compiled for, such as sm_90a."""
    return _layouts(plan).arch


def _layouts(plan: LayoutPlan) -> FragmentLayouts:
    assert isinstance(plan.layouts, FragmentLayouts)
    return plan.layouts


def is_packed_linear(node: fx.Node, plan: LayoutPlan) -> bool:
    """Whether a node is a linear whose weight is packed."""
    call = LinearCall.of(node)
    return call is not None and plan.is_packed(call.weight)


def only_multiplied(node: fx.Node, plan: LayoutPlan) -> bool:
    """Whether all that reads a node, seen with another shape or not, are linears with packed weights."""
    users = list(node.users)
    return bool(users) and all(
        only_multiplied(user, plan)
        if user.target is _aten.reshape.default
        else is_packed_linear(user, plan) and user.args[0] is node
        for user in users
    )


def out_dtype(node: fx.Node, plan: LayoutPlan) -> str:
    """The type a kernel stores a node's value in."""
    return compute_dtype(plan) if only_multiplied(node, plan) else "float32"


def rows_of(node: fx.Node, importer: EntryImporter, dtype: str) -> Any:
    """A node's value as [rows, last extent] in ``dtype``."""
    *lead, depth = shape_of(node)
    value = importer.reshape(importer.env[node], (math.prod(lead), depth))
    return value if value.ty.dtype == dtype else importer.block_builder.emit(relax.op.astype(value, dtype))
