"""What the operators on the KV cache become on a CPU: kernels that take the operator's tensors in its order."""

from collections.abc import Callable
from typing import Any

import tvm
from torch import fx

from dspark_compiler.lowering.attention_call import AttentionCall, commit_name, commit_shape
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args, written_args
from dspark_compiler.lowering.storage import cache_form, form_name
from dspark_compiler.schedules import attention as kernels


def append_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.append_attention: writes live slots."""
    return _attend(node, importer, "append_attention", kernels.append_attention)


def scratch_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.scratch_attention: writes scratch."""
    return _attend(node, importer, "scratch_attention", kernels.scratch_attention)


def _attend(node: fx.Node, importer: EntryImporter, kind: str, build: Callable[..., tvm.tirx.PrimFunc]) -> Any:
    """Both kinds of attention; their kernels take the operator's tensors in its order."""
    call = AttentionCall.of(node)
    name = identifier(f"{kind}_{call.name}{form_name(call.form)}")
    kernel = build(name, call.shape, call.scoring, importer.plan.isa, call.form)
    args = [importer.env[value] for value in tensor_args(node).values()]
    return importer.call_inplace(kernel, args, written_args(node), PhysicalTensor(shape_of(node), "float32"))


def commit_scratch(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.commit_scratch: writes live slots."""
    tensors = tensor_args(node)
    shape, form = commit_shape(tensors), cache_form(tensors)
    name = identifier(commit_name(shape) + form_name(form))
    kernel = kernels.commit_scratch(name, shape, importer.plan.isa, form)
    return importer.call_inplace(kernel, [importer.env[n] for n in tensors.values()], written_args(node))
