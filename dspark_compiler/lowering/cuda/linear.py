"""Linears with packed weights: few rows stream the weights, many are multiplied in tiles."""

import math
from dataclasses import dataclass
from typing import Any

from torch import fx
from tvm import relax

from dspark_compiler.lowering.cuda.fusions import FEW_ROWS, absorbed_norm, fed_norm
from dspark_compiler.lowering.cuda.operands import arch_of, compute_dtype, out_dtype, rows_of
from dspark_compiler.lowering.epilogues import Gate, Residual
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import Form, PhysicalTensor
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS
from dspark_compiler.schedules.cuda.late_norm import late_norm_input, late_norm_parts
from dspark_compiler.schedules.cuda.stream_linear import stream_gated_linear, stream_linear
from dspark_compiler.schedules.cuda.tile_linear import tile_gated_linear, tile_linear
from dspark_compiler.schedules.linear_schedule import LinearWorkload


def linear(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.linear(x, weight, bias)."""
    x, weight, *bias = args_of(node)
    return _linear(importer, node, x, weight, bias[0] if bias else None, None)


def lower_epilogue(node: fx.Node, match: Residual | Gate, importer: EntryImporter) -> Any:
    """A linear together with what is done to its output."""
    x, weight, *bias = args_of(match.linear)
    if isinstance(match, Residual):
        return _linear(importer, node, x, weight, bias[0] if bias else None, match.residual)
    dtype, stored = compute_dtype(importer.plan), out_dtype(node, importer.plan)
    *lead, features = shape_of(node)
    work = LinearWorkload(math.prod(lead), 2 * features, shape_of(x)[-1], dtype, gated=True)
    source = _Source.of(x, importer, dtype)
    name = identifier(f"gated_linear_{work.rows}x{work.depth}x{features}_{match.activation}_{stored}{source.name}")
    if work.rows <= FEW_ROWS:
        kernel = stream_gated_linear(
            name,
            work,
            dtype,
            activation=match.activation,
            norm_eps=source.norm_eps,
            late_norm=source.norm_eps is not None,
            out_dtype=stored,
        )
    else:
        kernel = tile_gated_linear(
            name, work, dtype, arch=arch_of(importer.plan), activation=match.activation, out_dtype=stored
        )
    args = [source.rows, importer.env[weight], *source.squares]
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


def _late_outputs(rows: int, depth: int, dtype: str) -> list[PhysicalTensor]:
    return [PhysicalTensor((rows, depth), dtype), PhysicalTensor((rows, late_norm_parts(depth)), "float32")]


def _linear(importer: EntryImporter, node: fx.Node, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    """The value x @ weight.T [+ bias] [+ residual], which is ``node``'s."""
    plan, env, emit = importer.plan, importer.env, importer.block_builder.emit
    if plan.forms.get(weight.meta.get("ref")) is not Form.PACKED:
        value = emit(relax.op.matmul(env[x], emit(relax.op.permute_dims(env[weight]))))
        for extra in (bias, residual):
            value = value if extra is None else emit(relax.op.add(value, env[extra]))
        return value
    dtype, stored = compute_dtype(plan), out_dtype(node, plan)
    *lead, features = shape_of(node)
    work = LinearWorkload(math.prod(lead), features, shape_of(x)[-1], dtype)
    source = _Source.of(x, importer, dtype)
    biased, added = bias is not None, residual is not None
    args = [source.rows, env[weight]]
    args += [] if bias is None else [env[bias]]
    args += [] if residual is None else [rows_of(residual, importer, "float32")]
    args += source.squares
    outs = [PhysicalTensor((work.rows, features), stored)]
    extras = ("_bias" if biased else "") + ("_residual" if added else "")
    name = f"linear_{work.rows}x{work.depth}x{features}{extras}_{stored}{source.name}"
    if work.rows > FEW_ROWS:
        kernel = tile_linear(
            identifier(name), work, dtype, arch=arch_of(plan), bias=biased, residual=added, out_dtype=stored
        )
        return importer.reshape(importer.call(kernel, args, outs[0]), shape_of(node))
    fed = fed_norm(node, importer.fusions) if features % TILE_ROWS == 0 else None
    if fed is not None:
        args.append(env[args_of(fed)[1]])
        outs += _late_outputs(work.rows, features, dtype)
    kernel = stream_linear(
        identifier(name + ("_feeds" if fed is not None else "")),
        work,
        dtype,
        bias=biased,
        residual=added,
        norm_eps=source.norm_eps,
        late_norm=source.norm_eps is not None,
        feeds_norm=fed is not None,
        out_dtype=stored,
    )
    value, *prepared = (
        importer.call_many(kernel, args, outs) if fed is not None else [importer.call(kernel, args, outs[0])]
    )
    if fed is not None:
        importer.prepared[fed] = tuple(prepared)
    return importer.reshape(value, shape_of(node))
