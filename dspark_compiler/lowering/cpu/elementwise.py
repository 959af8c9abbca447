"""Transcendental elementwise operators written out in multiplications and additions, so that their kernels vectorise.

Relax would call the C library an element at a time: 20 ns for a power or tanh, where a vector does sixteen in 10.
"""

from collections.abc import Callable
from typing import Any

from torch import fx
from tvm import te

from dspark_compiler.lowering.importer import Converter, EntryImporter
from dspark_compiler.lowering.nodes import args_of
from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.gated_linear import gelu_tanh, silu

_Function = Callable[[Any], Any]


def elementwise_converters() -> dict[str, Converter]:
    """Operator name -> converter, as TVM's importer spells names."""
    return {
        "exp.default": _unary(vector_math.exp),
        "sigmoid.default": _unary(vector_math.sigmoid),
        "silu.default": _unary(silu),
        "tanh.default": _unary(vector_math.tanh),
        "gelu.default": gelu,
        "pow.Tensor_Scalar": power,
    }


def gelu(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.gelu(x, approximate): written out in its tanh form, TVM's own in its exact one."""
    if node.kwargs.get("approximate") == "tanh":
        return _unary(gelu_tanh)(node, importer)
    return importer._gelu(node)


def power(node: fx.Node, importer: EntryImporter) -> Any:
    """aten.pow(x, exponent): products for squares and cubes, TVM's own otherwise."""
    exponent = args_of(node)[1]
    if exponent == 2:
        return _unary(lambda x: x * x)(node, importer)
    if exponent == 3:
        return _unary(lambda x: x * x * x)(node, importer)
    return importer._pow(node)


def _unary(function: _Function) -> Converter:
    def convert(node: fx.Node, importer: EntryImporter) -> Any:
        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *index: function(x(*index)), name=str(node.target).split(".")[1])

        return importer.block_builder.emit_te(compute, importer.env[args_of(node)[0]])

    return convert
