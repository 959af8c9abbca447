"""Lowered modules as small as tuning and scheduling need them."""

import tvm
from tvm import relax

from dspark_compiler.schedules.linear import packed_linear
from dspark_compiler.schedules.linear_schedule import LinearWorkload, packed_shape
from tests.schedules.kernels import WIDEST


def lowered(linear: LinearWorkload | None = None, rows: int = 4, depth: int = 96) -> tvm.IRModule:
    """An entry point `decode`: silu(x) * y + x, and a packed product where ``linear`` is given."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, depth), "float32"))
    y = relax.Var("y", relax.TensorType((rows, depth), "float32"))
    arguments = [x, y]
    if linear is not None:
        shape = packed_shape(linear.features, linear.depth, WIDEST)
        arguments.append(relax.Var("w", relax.TensorType(shape, linear.weight_dtype)))
    with builder.function("decode", arguments):
        with builder.dataflow():
            value = builder.emit(relax.op.add(relax.op.multiply(relax.op.nn.silu(x), y), x))
            if linear is not None:
                function = packed_linear("linear", linear, WIDEST).without_attr("global_symbol")
                kernel = builder.add_func(function, "linear")
                out = relax.TensorType((linear.rows, linear.features), "float32")
                value = builder.emit(relax.call_tir(kernel, [value, arguments[2]], out_ty=out))
            value = builder.emit_output(value)
        builder.emit_func_output(value)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(builder.get())
