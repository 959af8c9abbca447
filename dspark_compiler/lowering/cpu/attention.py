"""What the operators on the KV cache become on a CPU: kernels that take the operator's tensors in its order."""

from collections.abc import Callable
from typing import Any

import tvm
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args, written_args
from dspark_compiler.lowering.storage import cache_form, form_name
from dspark_compiler.schedules import attention as kernels
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring


def append_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.append_attention: writes live slots."""
    return _attend(node, importer, "append_attention", kernels.append_attention)


def scratch_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.scratch_attention: writes scratch."""
    return _attend(node, importer, "scratch_attention", kernels.scratch_attention)


def _attend(node: fx.Node, importer: EntryImporter, kind: str, build: Callable[..., tvm.tirx.PrimFunc]) -> Any:
    """Both kinds of attention; their kernels take the operator's tensors in its order."""
    given = bound_args(node)
    tensors = tensor_args(node)
    rows, heads, width, dim = shape_of(given["q"])
    batch, kv_heads, slots, _ = shape_of(given["k_cache"])
    scratch = shape_of(tensors["k_scratch"])[2] if "k_scratch" in tensors else 0
    shape = AttentionShape(rows, width, heads, kv_heads, dim, shape_of(given["v"])[3], batch, slots, scratch)
    scoring = Scoring(given["scale"], given["window"], given["softcap"], "sinks" in tensors)
    form = cache_form(tensors)
    kernel = build(_attention_name(kind, shape, scoring, form), shape, scoring, importer.plan.isa, form)
    args = [importer.env[value] for value in tensors.values()]
    return importer.call_inplace(kernel, args, written_args(node), PhysicalTensor(shape_of(node), "float32"))


def commit_scratch(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.commit_scratch: writes live slots."""
    tensors = tensor_args(node)
    batch, kv_heads, slots, dim = shape_of(tensors["k_cache"])
    value_dim, scratch = shape_of(tensors["v_cache"])[3], shape_of(tensors["k_scratch"])[2]
    shape = AttentionShape(batch, scratch, kv_heads, kv_heads, dim, value_dim, batch, slots, scratch)
    form = cache_form(tensors)
    name = identifier(f"commit_scratch_{batch}x{kv_heads}x{slots}x{dim}x{value_dim}_{scratch}" + form_name(form))
    kernel = kernels.commit_scratch(name, shape, importer.plan.isa, form)
    return importer.call_inplace(kernel, [importer.env[n] for n in tensors.values()], written_args(node))


def _attention_name(kind: str, shape: AttentionShape, scoring: Scoring, form: CacheForm) -> str:
    sizes = f"{shape.rows}x{shape.width}_h{shape.heads}x{shape.kv_heads}_d{shape.head_dim}x{shape.value_dim}"
    rest = f"c{shape.batch}x{shape.slots}_n{shape.scratch}_s{scoring.scale!r}_w{scoring.window}_cap{scoring.softcap!r}"
    return identifier(f"{kind}_{sizes}_{rest}" + ("_sinks" if scoring.sinks else "") + form_name(form))
