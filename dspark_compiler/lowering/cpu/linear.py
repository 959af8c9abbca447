"""Linears on a CPU: the packed kernel, with what is added to its sums, or a Relax matmul for other weights."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import fx
from tvm import relax

from dspark_compiler.lowering.epilogues import Gate, Residual
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import identifier, shape_of
from dspark_compiler.schedules import linear as linear_kernels
from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload
from dspark_compiler.schedules.tir import Arg


def linear(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.linear and dspark.quantized_linear: the packed kernel, or a Relax matmul where the weight is not packed."""
    return _lower_linear(importer, shape_of(node), _call(node), None)


def lower_epilogue(node: fx.Node, match: Residual | Gate, importer: EntryImporter) -> Any:
    """A linear together with what is done to its output."""
    call = _call(match.linear)
    if isinstance(match, Residual):
        return _lower_linear(importer, shape_of(node), call, match.residual)
    *lead, features = shape_of(node)
    work = _workload(importer, call, math.prod(lead), 2 * features, gated=True)
    name = f"gated_linear_{work.rows}x{work.depth}x{features}_{match.activation}{_types(work)}"
    kernel = gated_linear(name, work, importer.plan.isa, _schedule(importer, work), activation=match.activation)
    args = [importer.reshape(importer.env[call.x], (work.rows, work.depth)), *_weight(importer, call)]
    out = PhysicalTensor((work.rows, features), "float32")
    return importer.reshape(importer.call(kernel, args, out), shape_of(node))


def _call(node: fx.Node) -> LinearCall:
    call = LinearCall.of(node)
    assert call is not None
    return call


def _workload(
    importer: EntryImporter, call: LinearCall, rows: int, features: int, gated: bool = False
) -> LinearWorkload:
    params, depth = importer.plan.params, shape_of(call.x)[-1]
    if call.format is None:
        return LinearWorkload(rows, features, depth, params[call.weight.meta["ref"]].dtype, gated)
    scale_dtype = params[call.factors[0].meta["ref"]].dtype
    return LinearWorkload(rows, features, depth, call.format.tag, gated, scale_dtype)


def _schedule(importer: EntryImporter, work: LinearWorkload) -> LinearSchedule:
    schedule = importer.linear_schedule(work)
    assert isinstance(schedule, LinearSchedule)
    return schedule


def _types(work: LinearWorkload) -> str:
    """How a weight is stored, as part of a name."""
    return identifier(f"_{work.weight_dtype}" + ("_half" if work.scale_dtype == "float16" else ""))


def _weight(importer: EntryImporter, call: LinearCall) -> list[Any]:
    return [importer.env[param] for param in (call.weight, *call.factors)]


def _lower_linear(importer: EntryImporter, shape: tuple[int, ...], call: LinearCall, residual: Any) -> Any:
    """The value x @ weight.T [+ bias] [+ residual], y of ``shape``."""
    env, plan, bias = importer.env, importer.plan, call.bias
    if not plan.is_packed(call.weight):
        emit = importer.block_builder.emit
        value = emit(relax.op.matmul(env[call.x], emit(relax.op.permute_dims(env[call.weight]))))
        for extra in (bias, residual):
            value = value if extra is None else emit(relax.op.add(value, env[extra]))
        return value
    features = shape[-1]
    work = _workload(importer, call, math.prod(shape[:-1]), features)
    extras, values, name = [], [], f"linear_{work.rows}x{work.depth}x{features}{_types(work)}"
    if bias is not None:
        extras.append(Arg("bias", (features,)))
        values.append(env[bias])
        name += "_bias"
    if residual is not None:
        extras.append(Arg("residual", (work.rows, features)))
        values.append(importer.reshape(env[residual], (work.rows, features)))
        name += "_residual"
    kernel = linear_kernels.packed_linear(
        name,
        work,
        plan.isa,
        _schedule(importer, work),
        extras=tuple(extras),
        epilogue=_sum_epilogue(bias is not None, residual is not None),
    )
    args = [importer.reshape(env[call.x], (work.rows, work.depth)), *_weight(importer, call), *values]
    flat = importer.call(kernel, args, PhysicalTensor((work.rows, features), "float32"))
    return importer.reshape(flat, shape)


@cache  # one, so that kernels with it are equal
def _sum_epilogue(bias: bool, residual: bool) -> Callable[..., Any] | None:
    if not bias and not residual:
        return None

    def epilogue(value: Any, row: Any, feature: Any, extra: Any) -> Any:
        if bias:
            value = value + extra[0][feature]
        return value + extra[-1][row, feature] if residual else value

    return epilogue
