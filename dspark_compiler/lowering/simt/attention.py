"""Attention over cache slots, and the commit of what a verify left in scratch."""

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.attention_call import AttentionCall, commit_name, commit_shape, stored_operands
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import LayoutPlan, PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args, written_args
from dspark_compiler.lowering.projected import Projected, find_projection
from dspark_compiler.lowering.storage import cache_form, form_name
from dspark_compiler.schedules.simt import attention as kernels
from dspark_compiler.schedules.simt import cache_rows
from dspark_compiler.schedules.simt.attention_step import counters, is_step, step_attention
from dspark_compiler.schedules.simt.awaited import unset
from dspark_compiler.schedules.simt.eighths import EIGHTHS
from dspark_compiler.schedules.simt.qkv_prologue import Prologue, qkv_prologue
from dspark_compiler.schedules.simt.rows import zeros
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS


class Exchange(Enum):
    """What work groups may tell each other through the device's memory."""

    NONE = auto()
    WITHIN_LAUNCHES = auto()  # device_memory.py
    BETWEEN_LAUNCHES = auto()  # and awaited.py


def append_attention(node: fx.Node, importer: EntryImporter, *, exchange: Exchange) -> Any:
    """dspark.append_attention: writes live slots."""
    return _attend(node, importer, "append_attention", kernels.append_attention, exchange)


def scratch_attention(node: fx.Node, importer: EntryImporter, *, exchange: Exchange) -> Any:
    """dspark.scratch_attention: writes scratch."""
    return _attend(node, importer, "scratch_attention", kernels.scratch_attention, exchange)


def commit_scratch(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.commit_scratch: writes live slots."""
    tensors = tensor_args(node)
    shape, form, dtype = commit_shape(tensors), cache_form(tensors), _stored(tensors, importer.plan)
    name = identifier(f"{commit_name(shape)}_{dtype}{form_name(form)}")
    kernel = cache_rows.commit_scratch(name, shape, dtype, form)
    return importer.call_inplace(kernel, [importer.env[n] for n in tensors.values()], written_args(node))


def _attend(node: fx.Node, importer: EntryImporter, kind: str, build: Callable[..., Any], exchange: Exchange) -> Any:
    given, tensors, call = bound_args(node), tensor_args(node), AttentionCall.of(node)
    shape, scoring, form, dtype = call.shape, call.scoring, call.form, _stored(tensors, importer.plan)
    name = identifier(f"{kind}_{call.name}_{dtype}{form_name(form)}")
    out = PhysicalTensor(shape_of(node), "float32")
    # What makes codes of rows reads them whole.
    found = None if form.storage.scaled else find_projection(given["q"], given["k"], given["v"])
    if found is not None and exchange is not Exchange.NONE and is_step(shape, dtype):
        # What linears of few rows hand on (schedules/vulkan/stream_linear.py).
        awaits = exchange is Exchange.BETWEEN_LAUNCHES and shape.rows * shape.width <= MOST_ROWS
        return _step(node, importer, found, kind, call, awaits=awaits)
    if found is not None:
        q = _store_projected(node, importer, found, call)
        kernel, workspace = kernels.written_attention(name + "_written", shape, scoring, dtype, form)
        reading = [name for name in tensors if name not in ("q", "k", "v")]
        args = [q, *(importer.env[tensors[name]] for name in reading)]
        return importer.call_many(kernel, args, [out, PhysicalTensor(workspace, "float32")])[0]
    kernel, workspace = build(name, shape, scoring, dtype, form)
    args = [importer.env[value] for value in tensors.values()]
    outs = (out, PhysicalTensor(workspace, "float32"))
    return importer.call_inplace(kernel, args, written_args(node), *outs)


def _store_projected(node: fx.Node, importer: EntryImporter, found: Projected, call: AttentionCall) -> Any:
    """Queries [b,H,S,D]; keys and values are in the cache, or in scratch, afterwards."""
    dtype, shape = _stored(tensor_args(node), importer.plan), call.shape
    work = Prologue(found.eps, rope=found.tables is not None)
    name = f"qkv_{call.sizes}_{work.eps}_{work.rope}_{dtype}{form_name(call.form)}"
    kernel = qkv_prologue(identifier(name), shape, work, dtype, call.form)
    args = [projection_rows(found.source, importer), *(importer.env[operand] for operand in found.operands)]
    stored, written = stored_operands(node, importer, len(args))
    q = PhysicalTensor((shape.rows, shape.heads, shape.width, shape.head_dim), "float32")
    return importer.call_inplace(kernel, args + stored, written, q)


def _step(
    node: fx.Node, importer: EntryImporter, found: Projected, kind: str, call: AttentionCall, *, awaits: bool
) -> Any:
    """The whole of it in one launch, from the projection on."""
    shape, scoring, form, tensors = call.shape, call.scoring, call.form, tensor_args(node)
    dtype, work = _stored(tensors, importer.plan), Prologue(found.eps, rope=found.tables is not None)
    eighths = awaits and node in importer.fusions.eighths
    options = f"{work.eps}_{work.rope}_{dtype}{form_name(form)}{'_eighths' if eighths else ''}"
    name = identifier(f"step_{kind}_{call.name}_{options}")
    kernel, workspace = step_attention(name, shape, scoring, work, dtype, form, awaits=awaits, eighths=eighths)
    args = [projection_rows(found.source, importer), *(importer.env[operand] for operand in found.operands)]
    stored, written = stored_operands(node, importer, len(args))
    args += [*stored, *([importer.env[tensors["sinks"]]] if scoring.sinks else [])]
    written.append(len(args))
    args.append(meeting_counters(importer, counters(shape), own=awaits))
    outs = (PhysicalTensor(shape_of(node), EIGHTHS if eighths else "float32"), PhysicalTensor(workspace, "uint32"))
    return importer.call_inplace(kernel, args, written, *outs)


def projection_rows(source: fx.Node, importer: EntryImporter) -> Any:
    """A projection [b,S,T] as [b S, T]."""
    *lead, columns = shape_of(source)
    return importer.reshape(importer.env[source], (math.prod(lead), columns))


def meeting_counters(importer: EntryImporter, count: int, *, own: bool) -> Any:
    """Counters that are zero whenever no attention is under way, or ``NOTHING`` and a call's ``own``.

    Launches that overlap cannot share them.
    """
    if own:
        name = f"unset_{count}_{len(importer.scratch)}"  # of its own, for equal calls would be made one
        importer.scratch[name] = importer.call(unset(name, count), [], PhysicalTensor((count,), "uint32"))
        return importer.scratch[name]
    name = f"arrived_{count}"
    if name not in importer.scratch:
        importer.scratch[name] = importer.call(zeros(f"zeros_{count}", count), [], PhysicalTensor((count,), "uint32"))
    return importer.scratch[name]


def _stored(tensors: dict[str, fx.Node], plan: LayoutPlan) -> str:
    """The type the cache of an operator's tensors keeps its slots in."""
    return plan.states[tensors["k_cache"].meta["ref"]].dtype
