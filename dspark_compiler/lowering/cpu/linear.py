"""Linears on a CPU: the packed kernel, with what is added to its sums, or a Relax matmul for other weights."""

import math
from collections.abc import Callable
from typing import Any

from torch import fx
from tvm import relax

from dspark_compiler.lowering.epilogues import Gate, Residual
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import Form, PhysicalTensor
from dspark_compiler.lowering.nodes import args_of, shape_of
from dspark_compiler.schedules import linear as linear_kernels
from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.tir import Arg


def linear(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.linear(x, weight, bias): the packed kernel, or a Relax matmul where the weight is not a packed parameter."""
    x, weight, *bias = args_of(node)
    return _lower_linear(importer, shape_of(node), x, weight, bias[0] if bias else None, None)


def lower_epilogue(node: fx.Node, match: Residual | Gate, importer: EntryImporter) -> Any:
    """A linear together with what is done to its output."""
    x, weight, *bias = args_of(match.linear)
    if isinstance(match, Residual):
        return _lower_linear(importer, shape_of(node), x, weight, bias[0] if bias else None, match.residual)
    *lead, features = shape_of(node)
    rows, depth = math.prod(lead), shape_of(x)[-1]
    dtype = importer.plan.params[weight.meta["ref"]].dtype
    name = f"gated_linear_{rows}x{depth}x{features}_{match.activation}_{dtype}"
    work = LinearWorkload(rows, 2 * features, depth, dtype, gated=True)
    schedule = importer.linear_schedule(work)
    kernel = gated_linear(name, work, importer.plan.isa, schedule, activation=match.activation)
    args = [importer.reshape(importer.env[x], (rows, depth)), importer.env[weight]]
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((rows, features), "float32")), shape_of(node))


def _lower_linear(
    importer: EntryImporter, shape: tuple[int, ...], x: Any, weight: Any, bias: Any, residual: Any
) -> Any:
    """The value x @ weight.T [+ bias] [+ residual], y of ``shape``."""
    env, plan = importer.env, importer.plan
    ref = weight.meta.get("ref")
    features, depth = shape[-1], shape_of(x)[-1]
    rows = math.prod(shape[:-1])
    if plan.forms.get(ref) is not Form.PACKED:
        emit = importer.block_builder.emit
        value = emit(relax.op.matmul(env[x], emit(relax.op.permute_dims(env[weight]))))
        for extra in (bias, residual):
            value = value if extra is None else emit(relax.op.add(value, env[extra]))
        return value
    dtype = plan.params[ref].dtype
    extras, values, name = [], [], f"linear_{rows}x{depth}x{features}_{dtype}"
    if bias is not None:
        extras.append(Arg("bias", (features,)))
        values.append(env[bias])
        name += "_bias"
    if residual is not None:
        extras.append(Arg("residual", (rows, features)))
        values.append(importer.reshape(env[residual], (rows, features)))
        name += "_residual"
    work = LinearWorkload(rows, features, depth, dtype)
    kernel = linear_kernels.packed_linear(
        name,
        work,
        plan.isa,
        importer.linear_schedule(work),
        extras=extras,
        epilogue=_sum_epilogue(bias is not None, residual is not None),
    )
    args = [importer.reshape(env[x], (rows, depth)), env[weight], *values]
    flat = importer.call(kernel, args, PhysicalTensor((rows, features), "float32"))
    return importer.reshape(flat, shape)


def _sum_epilogue(bias: bool, residual: bool) -> Callable[..., Any] | None:
    if not bias and not residual:
        return None

    def epilogue(value: Any, row: Any, feature: Any, extra: Any) -> Any:
        if bias:
            value = value + extra[0][feature]
        return value + extra[-1][row, feature] if residual else value

    return epilogue
