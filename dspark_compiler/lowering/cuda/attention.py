"""Attention over cache slots, and the commit of what a verify left in scratch."""

from typing import Any

from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.attention_call import AttentionCall, commit_name, commit_shape, stored_operands
from dspark_compiler.lowering.cuda.operands import arch_of, compute_dtype, out_dtype, rows_of
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args, written_args
from dspark_compiler.lowering.projected import Projected, find_projection
from dspark_compiler.lowering.storage import cache_form, form_name
from dspark_compiler.schedules.cuda import attention as kernels
from dspark_compiler.schedules.cuda import cache_writes as write_kernels
from dspark_compiler.schedules.cuda.qkv_prologue import Prologue, qkv_prologue

_LAYERS = 16  # whose caches fit a launch's arguments


def append_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.append_attention: writes live slots."""
    return _attend(node, importer, "append_attention")


def scratch_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.scratch_attention: writes scratch."""
    return _attend(node, importer, "scratch_attention")


def commit_scratch(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.commit_scratch: writes live slots; a launch does it for several layers that are alike."""
    alike = [n for n in node.graph.find_nodes(op="call_function", target=node.target) if _commits(n) == _commits(node)]
    number, tensors = alike.index(node), tensor_args(node)
    if number % _LAYERS:
        return importer.env[tensors["k_cache"]]
    together, dtype = alike[number : number + _LAYERS], compute_dtype(importer.plan)
    shape, form, layers = commit_shape(tensors), cache_form(tensors), len(together)
    name = identifier(f"{commit_name(shape)}_{layers}_{dtype}{form_name(form)}")
    kernel = write_kernels.commit_scratch(name, shape, dtype, form, layers)
    args = [importer.env[n] for each in together for n in tensor_args(each).values()]
    written = [layer * len(tensors) + i for layer, each in enumerate(together) for i in written_args(each)]
    importer.call_inplace(kernel, args, written)
    return importer.env[tensors["k_cache"]]


def _commits(node: fx.Node) -> tuple[Any, ...]:
    """What commits have in common that can be made together."""
    tensors = tensor_args(node)
    told = [tensors[name] for name in ("length", "accepted", "free") if name in tensors]
    return (cache_form(tensors), [(name, shape_of(n)) for name, n in tensors.items()], told)


def _attend(node: fx.Node, importer: EntryImporter, kind: str) -> Any:
    given, tensors, call = bound_args(node), tensor_args(node), AttentionCall.of(node)
    shape, scoring, form = call.shape, call.scoring, call.form
    dtype, stored = compute_dtype(importer.plan), out_dtype(node, importer.plan)
    name = identifier(f"{kind}_{call.name}_{dtype}_{stored}{form_name(form)}")
    out = PhysicalTensor(shape_of(node), stored)
    found = find_projection(given["q"], given["k"], given["v"])
    if found is not None:
        kernel, workspace = kernels.written_attention(
            name + "_written", shape, scoring, dtype, form, out_dtype=stored, arch=arch_of(importer.plan)
        )
        q = _store_projected(node, importer, found, call)
        reading = [name for name in tensors if name not in ("q", "k", "v")]
        args = [q, *(importer.env[tensors[name]] for name in reading)]
        return importer.call_many(kernel, args, [out, PhysicalTensor(workspace, "float32")])[0]
    build = kernels.append_attention if kind == "append_attention" else kernels.scratch_attention
    kernel, workspace = build(name, shape, scoring, dtype, form, out_dtype=stored)
    args = [importer.env[value] for value in tensors.values()]
    return importer.call_inplace(kernel, args, written_args(node), out, PhysicalTensor(workspace, "float32"))


def _store_projected(node: fx.Node, importer: EntryImporter, found: Projected, call: AttentionCall) -> Any:
    """Queries [b,H,S,D] as attention reads them; keys and values are in the cache, or in scratch, afterwards."""
    dtype, shape = compute_dtype(importer.plan), call.shape
    work = Prologue(found.eps, rope=found.tables is not None)
    name = f"qkv_{call.sizes}_{work.eps}_{work.rope}_{dtype}{form_name(call.form)}"
    kernel = qkv_prologue(identifier(name), shape, work, dtype, call.form)
    args = [rows_of(found.source, importer, "float32"), *(importer.env[operand] for operand in found.operands)]
    stored, written = stored_operands(node, importer, len(args))
    queries = PhysicalTensor((shape.rows, shape.heads, shape.width, shape.head_dim), dtype)
    return importer.call_inplace(kernel, args + stored, written, queries)
