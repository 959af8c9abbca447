"""Linears with packed weights: few rows stream the weights, many are multiplied in tiles."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from tvm import relax

from dspark_compiler.errors import LoweringError
from dspark_compiler.lowering.cuda.fusions import absorbed_norm, fed_norm
from dspark_compiler.lowering.cuda.operands import arch_of, compute_dtype, out_dtype, rows_of
from dspark_compiler.lowering.epilogues import Gate, Residual
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of
from dspark_compiler.schedules.cuda.dequantize import dequantize_fragments
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.late_norm import late_norm_input, late_norm_parts
from dspark_compiler.schedules.cuda.layouts import STORED
from dspark_compiler.schedules.cuda.quantized_fragments import tile_group
from dspark_compiler.schedules.cuda.stream_linear import stream_gated_linear, stream_linear
from dspark_compiler.schedules.cuda.stream_schedule import FEW_ROWS, StreamSchedule
from dspark_compiler.schedules.cuda.tile_linear import tile_gated_linear, tile_linear
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.linear_schedule import LinearWorkload

_PIECE = 8  # elements of two bytes that are read at once


def linear(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.linear and dspark.quantized_linear."""
    return _linear(importer, node, _call(node), None)


def lower_epilogue(node: fx.Node, match: Residual | Gate, importer: EntryImporter) -> Any:
    """A linear together with what is done to its output."""
    call = _call(match.linear)
    if isinstance(match, Residual):
        return _linear(importer, node, call, match.residual)
    dtype, stored = compute_dtype(importer.plan), out_dtype(node, importer.plan)
    *lead, features = shape_of(node)
    weight = _Weight.of(call, importer, math.prod(lead))
    work = LinearWorkload(math.prod(lead), 2 * features, shape_of(call.x)[-1], weight.stored, gated=True)
    source = _Source.of(call.x, importer, dtype)
    name = identifier(
        f"gated_linear_{work.rows}x{work.depth}x{features}_{match.activation}_{stored}{source.name}{weight.name(dtype)}"
    )
    cut = importer.linear_schedule(work)
    if isinstance(cut, StreamSchedule):
        kernel = stream_gated_linear(
            name,
            work,
            dtype,
            cut,
            activation=match.activation,
            norm_eps=source.norm_eps,
            late_norm=source.norm_eps is not None,
            out_dtype=stored,
            **weight.options,
        )
    else:
        assert isinstance(cut, TileSchedule)
        kernel = tile_gated_linear(
            name, work, dtype, cut, arch=arch_of(importer.plan), activation=match.activation, out_dtype=stored
        )
    args = [source.rows, *weight.args, *source.squares]
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((work.rows, features), stored)), shape_of(node))


@dataclass(frozen=True)
class _Source:
    """What a linear reads: rows of products' operands; with ``norm_eps`` they are to be scaled by ``squares``."""

    rows: Any
    norm_eps: float | None = None
    squares: tuple[Any, ...] = ()
    name: str = ""

    @staticmethod
    def of(x: fx.Node, importer: EntryImporter, dtype: str) -> "_Source":
        norm = absorbed_norm(x, importer.fusions)
        if norm is None:
            return _Source(rows_of(x, importer, dtype), name=f"_{dtype}")
        value, weight, eps = args_of(norm)
        if norm not in importer.prepared:
            rows = rows_of(value, importer, "float32")
            count, depth = (int(extent) for extent in rows.ty.shape)
            kernel = late_norm_input(f"late_norm_{count}x{depth}_{dtype}", count, depth, dtype)
            outs = _late_outputs(count, depth, dtype)
            importer.prepared[norm] = tuple(importer.call_many(kernel, [rows, importer.env[weight]], outs))
        product, squares = importer.prepared[norm]
        return _Source(product, eps, (squares,), f"_norm_{eps:.3e}_{dtype}")


@dataclass(frozen=True)
class _Weight:
    """A packed weight as kernels take it: its type, the tensors of it, and how scales belong to columns."""

    stored: str
    args: tuple[Any, ...]
    group: int = 0
    offsets: bool = False

    def name(self, dtype: str) -> str:
        """As part of a kernel's name; nothing for plain weights."""
        group = f"_g{self.group}" if self.group else ""
        return "" if self.stored == dtype else f"_{self.stored}{group}{'_offsets' if self.offsets else ''}"

    @property
    def options(self) -> dict[str, Any]:
        """What kernels that stream it are told."""
        return {"group": self.group, "offsets": self.offsets}

    @staticmethod
    def of(call: LinearCall, importer: EntryImporter, rows: int) -> "_Weight":
        """Codes and scales for few rows; for many, the weight they stand for, made anew.

        Raises:
            LoweringError: rows of x that do not consist of 16-byte pieces, which is what kernels read.
        """
        dtype = compute_dtype(importer.plan)
        if (width := shape_of(call.x)[-1]) % _PIECE:
            raise LoweringError(
                f"--target cuda: {call.weight.meta['ref']} multiplies rows of {width} elements, which is no multiple "
                f"of {_PIECE}; compile with --target cpu"
            )
        args = tuple(importer.env[param] for param in (call.weight, *call.factors))
        if call.format is None:
            return _Weight(dtype, args)
        features, depth = shape_of(call.weight)
        stored, columns = STORED[call.format.codes], call.format.group
        group = tile_group(stored, columns, depth) or 0 if columns else 0
        weight = _Weight(stored, args, group, call.format.offsets)
        if rows <= FEW_ROWS:
            return weight
        kernel = dequantize_fragments(
            f"dequantize_{features}x{depth}{weight.name(dtype)}_{dtype}",
            WeightForm(features, depth, stored, dtype, group, call.format.offsets),
        )
        return _Weight(dtype, (importer.call(kernel, args, PhysicalTensor(fragment_shape(features, depth), dtype)),))


def _call(node: fx.Node) -> LinearCall:
    call = LinearCall.of(node)
    assert call is not None
    return call


def _every_row(value: fx.Node | None) -> tuple[fx.Node | None, tuple[int, int]]:
    """A tensor whose rows first, step + first, 2 step + first, … are those of ``value``; and step and first."""
    if value is None or value.target is not torch.ops.aten.select.int:
        return value, (1, 0)
    whole, dim, index = args_of(value)
    inside = dim == 1 and len(shape_of(whole)) == 3 and index >= 0
    return (whole, (shape_of(whole)[1], index)) if inside else (value, (1, 0))


def _late_outputs(rows: int, depth: int, dtype: str) -> list[PhysicalTensor]:
    return [PhysicalTensor((rows, depth), dtype), PhysicalTensor((rows, late_norm_parts(depth)), "float32")]


def _linear(importer: EntryImporter, node: fx.Node, call: LinearCall, residual: Any) -> Any:
    """The value x @ weight.T [+ bias] [+ residual], which is ``node``'s."""
    plan, env, emit = importer.plan, importer.env, importer.block_builder.emit
    bias = call.bias
    if not plan.is_packed(call.weight):
        value = emit(relax.op.matmul(env[call.x], emit(relax.op.permute_dims(env[call.weight]))))
        for extra in (bias, residual):
            value = value if extra is None else emit(relax.op.add(value, env[extra]))
        return value
    dtype, stored = compute_dtype(plan), out_dtype(node, plan)
    *lead, features = shape_of(node)
    weight = _Weight.of(call, importer, math.prod(lead))
    work = LinearWorkload(math.prod(lead), features, shape_of(call.x)[-1], weight.stored)
    source = _Source.of(call.x, importer, dtype)
    biased, added = bias is not None, residual is not None
    args = [source.rows, *weight.args]
    args += [] if bias is None else [env[bias]]
    whole, every = _every_row(residual) if work.rows <= FEW_ROWS else (residual, (1, 0))
    args += [] if whole is None else [rows_of(whole, importer, "float32")]
    args += source.squares
    outs = [PhysicalTensor((work.rows, features), stored)]
    extras = ("_bias" if biased else "") + ("_residual" if added else "")
    extras += "" if every == (1, 0) else f"_{every[0]}_{every[1]}"
    name = f"linear_{work.rows}x{work.depth}x{features}{extras}_{stored}{source.name}{weight.name(dtype)}"
    cut = importer.linear_schedule(work)
    if isinstance(cut, TileSchedule):
        kernel = tile_linear(
            identifier(name), work, dtype, cut, arch=arch_of(plan), bias=biased, residual=added, out_dtype=stored
        )
        return importer.reshape(importer.call(kernel, args, outs[0]), shape_of(node))
    fed = fed_norm(node, importer.fusions) if features % TILE_ROWS == 0 else None
    if fed is not None:
        args.append(env[args_of(fed)[1]])
        outs += _late_outputs(work.rows, features, dtype)
    assert isinstance(cut, StreamSchedule)
    kernel = stream_linear(
        identifier(name + ("_feeds" if fed is not None else "")),
        work,
        dtype,
        cut,
        bias=biased,
        residual=added,
        every=every,
        norm_eps=source.norm_eps,
        late_norm=source.norm_eps is not None,
        feeds_norm=fed is not None,
        out_dtype=stored,
        **weight.options,
    )
    value, *prepared = (
        importer.call_many(kernel, args, outs) if fed is not None else [importer.call(kernel, args, outs[0])]
    )
    if fed is not None:
        importer.prepared[fed] = tuple(prepared)
    return importer.reshape(value, shape_of(node))
