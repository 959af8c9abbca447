"""A linear as lowering sees it, whatever form its weight has."""

from dataclasses import dataclass

import torch
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.graph.values import spec_of
from dspark_compiler.quantization.weight_format import WeightFormat

_LINEAR = torch.ops.aten.linear.default
_QUANTIZED = torch.ops.dspark.quantized_linear.default


@dataclass(frozen=True)
class LinearCall:
    """x @ W.T [+ bias].

    ``weight`` is the parameter of the plain weight or of the codes, ``factors`` those of scales and offsets, if any.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    factors: tuple[fx.Node, ...] = ()
    format: WeightFormat | None = None

    @staticmethod
    def of(node: object) -> "LinearCall | None":
        """The call that a node is, None if it is none."""
        if not isinstance(node, fx.Node) or node.target not in (_LINEAR, _QUANTIZED):
            return None
        given = bound_args(node)
        if node.target is _LINEAR:
            return LinearCall(given["input"], given["weight"], given["bias"])
        codes, scales, offsets = given["codes"], given["scales"], given["offsets"]
        factors = (scales,) if offsets is None else (scales, offsets)
        return LinearCall(given["x"], codes, given["bias"], factors, _format(codes, scales, offsets, given["bits"]))


def _format(codes: fx.Node, scales: fx.Node, offsets: fx.Node | None, bits: int) -> WeightFormat:
    depth, groups = spec_of(codes).shape[1], spec_of(scales).shape[1]
    if spec_of(codes).dtype is torch.float8_e4m3fn:
        return WeightFormat("float8_e4m3", 0 if groups == 1 else depth // groups, offsets is not None)
    # Four-bit codes and offsets always come in groups, be it a single one.
    group = 0 if groups == 1 and bits == 8 and offsets is None else depth // groups
    return WeightFormat("int4" if bits == 4 else "int8", group, offsets is not None)
