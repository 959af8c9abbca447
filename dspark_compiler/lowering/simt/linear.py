"""Linears with packed weights: few rows stream the weights, many are multiplied in tiles."""

import dataclasses
import math
from typing import Any

import torch
from torch import fx
from tvm import relax

from dspark_compiler.lowering.epilogues import Gate, Residual
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import LayoutPlan, PhysicalTensor
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of
from dspark_compiler.lowering.simt.few_rows import streams
from dspark_compiler.lowering.simt.fusions import absorbed_norm
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.eighths import EIGHTHS
from dspark_compiler.schedules.simt.row_schedule import FEW_ROWS, RowSchedule
from dspark_compiler.schedules.simt.stream_output import Options

_SELECT = torch.ops.aten.select.int


def linear(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.linear and dspark.quantized_linear."""
    return _linear(importer, node, _call(node), Options())


def lower_epilogue(node: fx.Node, match: Residual | Gate, importer: EntryImporter) -> Any:
    """A linear together with what is done to its output."""
    if isinstance(match, Gate):
        return _linear(importer, node, _call(match.linear), Options(activation=match.activation))
    return _linear(importer, node, _call(match.linear), Options(residual=True), match.residual)


def _call(node: fx.Node) -> LinearCall:
    call = LinearCall.of(node)
    assert call is not None
    return call


def _linear(
    importer: EntryImporter, node: fx.Node, call: LinearCall, options: Options, residual: fx.Node | None = None
) -> Any:
    """The value of ``node``: x @ weight.T with what ``options`` say of it."""
    if not importer.plan.is_packed(call.weight):
        return _plain(importer, call, residual)
    *lead, features = shape_of(node)
    rows, depth, env = math.prod(lead), shape_of(call.x)[-1], importer.env
    assert importer.entry is not None
    norm, is_stream = absorbed_norm(call, importer.entry), streams(importer.entry, rows)
    x, *norm_weight = [call.x] if norm is None else args_of(norm)[:2]
    eps = None if norm is None else args_of(norm)[2]
    options = dataclasses.replace(
        options,
        bias=call.bias is not None,
        norm_eps=eps,
        reads_eighths=str(env[x].ty.dtype) == EIGHTHS,
        writes_eighths=node in importer.fusions.eighths,
    )
    stored, scale_dtype = _stored(call, importer.plan)
    work = LinearWorkload(rows, shape_of(call.weight)[0], depth, stored, options.activation is not None, scale_dtype)
    args = [importer.reshape(env[x], (rows, depth)), *(env[part] for part in (call.weight, *call.factors))]
    args += [env[weight] for weight in norm_weight]
    args += [] if call.bias is None else [env[call.bias]]
    # However many rows a stream has, it is cut as that of few is.
    schedule = importer.linear_schedule(dataclasses.replace(work, rows=min(rows, FEW_ROWS)) if is_stream else work)
    assert isinstance(schedule, RowSchedule)
    if residual is not None:
        added, options = _read_in_place(residual, options) if schedule.splits else (residual, options)
        args.append(importer.reshape(env[added], (rows * options.residual_step, features)))
    name = _name(work, features, options)
    if schedule.splits == 0:
        kernel = importer.template("tile_linear", name, work, options)
    else:
        kernel = importer.template("stream_linear", name, work, schedule, options)
    # Behind its arguments come y, and tensors that only the kernel itself needs.
    types = [parameter.ty for parameter in kernel.params[len(args) :]]
    outs = [PhysicalTensor(tuple(map(int, type_.shape)), str(type_.dtype.dtype)) for type_ in types]
    value = importer.call(kernel, args, *outs) if len(outs) == 1 else importer.call_many(kernel, args, outs)[0]
    return importer.reshape(value, shape_of(node))


def _read_in_place(residual: fx.Node, options: Options) -> tuple[fx.Node, Options]:
    """Where the residual lies: one row of each of [b,S,K], if it is such a piece."""
    if residual.target is not _SELECT:
        return residual, options
    source, axis, index = args_of(residual)
    if axis != 1 or len(shape_of(source)) != 3:
        return residual, options
    step = shape_of(source)[1]
    return source, dataclasses.replace(options, residual_row=index % step, residual_step=step)


def _stored(call: LinearCall, plan: LayoutPlan) -> tuple[str, str]:
    """What a workload calls a weight and its scales."""
    if call.format is None:
        return plan.params[call.weight.meta["ref"]].dtype, "float32"
    return call.format.tag, plan.params[call.factors[0].meta["ref"]].dtype


def _plain(importer: EntryImporter, call: LinearCall, residual: fx.Node | None) -> Any:
    """The same as Relax does it, with a weight that is not packed."""
    env, emit = importer.env, importer.block_builder.emit
    value = emit(relax.op.matmul(env[call.x], emit(relax.op.permute_dims(env[call.weight]))))
    for extra in (call.bias, residual):
        value = value if extra is None else emit(relax.op.add(value, env[extra]))
    return value


def _name(work: LinearWorkload, features: int, options: Options) -> str:
    parts = [f"linear_{work.rows}x{work.depth}x{features}_{work.weight_dtype}"]
    parts += [f"scales_{work.scale_dtype}"] if work.quantized else []
    parts += [options.activation] if options.activation else []
    parts += [] if options.norm_eps is None else [f"norm_{options.norm_eps:.3e}"]
    parts += [name for name in ("bias", "residual", "reads_eighths", "writes_eighths") if getattr(options, name)]
    parts += [f"row_{options.residual_row}_of_{options.residual_step}"] if options.residual_step > 1 else []
    return identifier("_".join(parts))
