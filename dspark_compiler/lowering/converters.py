"""What small operators become on any target: its kernel template of that name with this node's sizes."""

import math
from typing import Any

import torch
from torch import fx
from tvm import relax

from dspark_compiler.errors import LoweringError
from dspark_compiler.lowering.importer import Converter, EntryImporter
from dspark_compiler.lowering.layout import Form, PhysicalTensor
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of
from dspark_compiler.schedules.rope import RopeShape

aten = torch.ops.aten


def common_converters() -> dict[str, Converter]:
    """Operator name -> converter, as TVM's importer spells names."""
    return {
        "reshape.default": reshape,
        "select.int": select,
        "embedding.default": embedding,
        "quantized_embedding.default": quantized_embedding,
        "rms_norm.default": rms_norm,
        "layer_norm.default": layer_norm,
        "native_layer_norm.default": native_layer_norm,
        "rope.default": rope,
        "last_row.default": last_row,
        "topk.default": topk,
        "expert_linear.default": expert_linear,
    }


def reshape(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.reshape(x, shape)."""
    return importer.reshape(importer.env[args_of(node)[0]], shape_of(node))


def select(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.select(x, dim, index): a slice, where TVM's own converter would look each element up."""
    x, dim, index = args_of(node)
    extent = shape_of(x)[dim]
    begin = index % extent
    piece = relax.op.strided_slice(importer.env[x], [dim % len(shape_of(x))], [begin], [begin + 1])
    return importer.reshape(importer.block_builder.emit(piece), shape_of(node))


def embedding(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.embedding(weight, ids)."""
    weight, ids, *_ = args_of(node)
    env, plan = importer.env, importer.plan
    ref = weight.meta.get("ref")
    form = plan.forms.get(ref, Form.PLAIN)
    if form is Form.PLAIN:
        flat = importer.reshape(env[ids], (math.prod(shape_of(ids)),))
        rows = importer.block_builder.emit(relax.op.take(env[weight], flat, axis=0))
        return importer.reshape(rows, shape_of(node))
    *lead, depth = shape_of(node)
    tokens, vocab, dtype = math.prod(lead), shape_of(weight)[0], plan.params[ref].dtype
    template = "packed_embedding" if form is Form.PACKED else "row_embedding"
    name = f"embedding_{form}_{tokens}_{vocab}x{depth}_{dtype}"
    kernel = importer.template(template, name, tokens, vocab, depth, weight_dtype=dtype)
    args = [importer.reshape(env[ids], (tokens,)), env[weight]]
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((tokens, depth), "float32")), shape_of(node))


def quantized_embedding(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.quantized_embedding(codes, scales, ids)."""
    codes, scales, ids = args_of(node)
    *lead, depth = shape_of(node)
    tokens, vocab, plan = math.prod(lead), shape_of(codes)[0], importer.plan
    kept, scale_dtype = plan.formats[codes.meta["ref"]].codes, plan.params[scales.meta["ref"]].dtype
    name = f"quantized_embedding_{tokens}_{vocab}x{depth}_{kept}_{scale_dtype}"
    kernel = importer.template(
        "quantized_embedding", name, tokens, vocab, depth, codes_kept=kept, scale_dtype=scale_dtype
    )
    args = [importer.reshape(importer.env[ids], (tokens,)), importer.env[codes], importer.env[scales]]
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((tokens, depth), "float32")), shape_of(node))


def rms_norm(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.rms_norm(x, weight, eps)."""
    x, weight, eps = args_of(node)
    *lead, depth = shape_of(node)
    rows = math.prod(lead)
    name = f"rms_norm_{rows}x{depth}_{eps:.3e}" + ("" if weight is None else "_weight")
    kernel = importer.template("rms_norm", identifier(name), rows, depth, eps, weighted=weight is not None)
    args = [importer.reshape(importer.env[x], (rows, depth))]
    if weight is not None:
        args.append(importer.env[weight])
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((rows, depth), "float32")), shape_of(node))


def rope(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.rope(x, cos, sin); x is read out of the projection's output where it is a slice of that."""
    x, cos, sin = args_of(node)
    rows, heads, width, dim = shape_of(node)
    source, offset = _token_major(x)
    if source is None:
        shape, value = RopeShape(rows, heads, width, dim, shape_of(x)), importer.env[x]
    else:
        flat = (rows * width, math.prod(shape_of(source)) // (rows * width))
        shape = RopeShape(rows, heads, width, dim, flat, offset)
        value = importer.reshape(importer.env[source], flat)
    layout = "heads" if source is None else f"{shape.source[1]}_{offset}"
    kernel = importer.template("rope", f"rope_{rows}x{heads}x{width}x{dim}_{layout}", shape)
    args = [value, importer.env[cos], importer.env[sin]]
    return importer.call(kernel, args, PhysicalTensor(shape_of(node), "float32"))


def _token_major(x: fx.Node) -> tuple[fx.Node | None, int]:
    """The tensor that holds x [b,H,S,D] as [b,S,...] rows, and the column it starts at; None if there is none."""
    if x.target is not aten.permute.default or list(args_of(x)[1]) != [0, 2, 1, 3]:
        return None, 0
    source: fx.Node = args_of(x)[0]
    if source.target is aten.reshape.default and args_of(source)[0].target is aten.slice.Tensor:
        piece: fx.Node = args_of(source)[0]
        whole, dim, start, *_ = args_of(piece)
        if dim == len(shape_of(whole)) - 1 == 2 and len(piece.args) == 4:
            return whole, start
    return source, 0


def layer_norm(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.layer_norm(x, normalized_shape, weight, bias, eps)."""
    x, normalized, *rest = args_of(node)
    weight, bias, eps = [*rest, None, None, 1e-5][:3] if len(rest) < 3 else rest[:3]
    return _layer_norm(importer, x, normalized, weight, bias, 1e-5 if eps is None else eps)


def native_layer_norm(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.native_layer_norm: a tuple whose mean and reciprocal deviation no inference graph reads."""
    x, normalized, weight, bias, eps = args_of(node)
    return relax.Tuple([_layer_norm(importer, x, normalized, weight, bias, eps)])


def _layer_norm(importer: EntryImporter, x: fx.Node, normalized: Any, weight: Any, bias: Any, eps: float) -> Any:
    shape = shape_of(x)
    if tuple(normalized) != shape[-1:]:
        raise LoweringError(f"layer normalisation over {tuple(normalized)} of {shape}: only the last axis is supported")
    depth, rows = shape[-1], math.prod(shape[:-1])
    present = [n for n in (weight, bias) if n is not None]
    name = f"layer_norm_{rows}x{depth}_{eps:.3e}" + ("_weight" if weight else "") + ("_bias" if bias else "")
    kernel = importer.template(
        "layer_norm", identifier(name), rows, depth, eps, weighted=weight is not None, biased=bias is not None
    )
    args = [importer.reshape(importer.env[x], (rows, depth)), *(importer.env[n] for n in present)]
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((rows, depth), "float32")), shape)


def last_row(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.last_row(x, count)."""
    x, count = args_of(node)
    rows, width, depth = shape_of(x)
    kernel = importer.template("last_row", f"last_row_{rows}x{width}x{depth}", rows, width, depth)
    args = [importer.env[x], importer.env[count]]
    return importer.call(kernel, args, PhysicalTensor((rows, 1, depth), "float32"))


def topk(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.topk(x, k, dim, largest, sorted) over the last axis: (values, indices)."""
    x, k, *options = args_of(node)
    dim = options[0] if options else -1
    largest = options[1] if len(options) > 1 else True
    *lead, columns = shape_of(x)
    if dim not in (-1, len(lead)) or not largest:
        raise LoweringError(
            f"topk over axis {dim} (largest={largest}) of {shape_of(x)}: only the largest of the last axis"
        )
    rows = math.prod(lead)
    kernel = importer.template("topk", f"topk_{rows}x{columns}_{k}", rows, columns, k)
    outs = [PhysicalTensor((rows, k), "float32"), PhysicalTensor((rows, k), "int64")]
    results = importer.call_many(kernel, [importer.reshape(importer.env[x], (rows, columns))], outs)
    return relax.Tuple([importer.reshape(value, (*lead, k)) for value in results])


def expert_linear(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.expert_linear(x, weight, expert)."""
    x, weight, expert = args_of(node)
    (rows, features), (experts, _, depth) = shape_of(node), shape_of(weight)
    if importer.plan.forms.get(weight.meta.get("ref")) is not Form.PACKED:
        raise LoweringError(f"the experts {weight.name} are used in a way that keeps them from being packed")
    dtype = importer.plan.params[weight.meta["ref"]].dtype
    name = f"expert_linear_{rows}x{depth}x{features}_{experts}_{dtype}"
    kernel = importer.template("expert_linear", name, rows, experts, features, depth, weight_dtype=dtype)
    args = [importer.env[value] for value in (x, weight, expert)]
    return importer.call(kernel, args, PhysicalTensor((rows, features), "float32"))
