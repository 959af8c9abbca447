"""MatMulNBits of ONNX Runtime: linears whose weights are codes of 4 or 8 bits, read as the numbers they stand for.

N outputs, K inputs, blocks of g columns, J = ceil(K/g) of them: codes are bytes [N, J, g*bits/8], low half first,
scales [N, J]; zero points [N, J] are numbers, or codes packed along J. W[n,k] = (code - zero) * scale; the zero of
unsigned codes is 2^(bits-1) where none is given.
"""

from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.graph import CONTRIB, OURS, attribute, given, insert
from dspark_compiler.frontend.onnx.operators.base import key_of, named
from dspark_compiler.frontend.onnx.types import read
from dspark_compiler.quantization.weight import QuantizedWeight
from dspark_compiler.quantization.weight_format import WeightFormat


@dataclass(frozen=True)
class PackedWeight:
    """A weight as the file has it; read when it is asked for."""

    features: int
    depth: int
    block: int
    bits: int
    codes: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: ir.TensorProtocol | None

    def dequantized(self) -> Tensor:
        """The numbers float32 [N,K]."""
        codes, scales, zeros = self._parts()
        zero = float(1 << (self.bits - 1)) if zeros is None else zeros[..., None]
        weight = ((codes.float() - zero) * scales[..., None]).flatten(1)
        return weight[:, : self.depth].contiguous()

    def stored(self) -> QuantizedWeight | None:
        """Codes and scales; None where a row's last block is not full."""
        if self.depth % self.block:
            return None
        codes, scales, zeros = self._parts()
        half = 1 << (self.bits - 1)
        offsets = None if zeros is None else (half - zeros) * scales
        if offsets is not None and not bool(offsets.any()):
            offsets = None
        form = WeightFormat("int4" if self.bits == 4 else "int8", self.block, offsets=offsets is not None)
        signed = (codes.to(torch.int16) - half).to(torch.int8).reshape(self.features, self.depth)
        return QuantizedWeight(form, signed, scales, offsets)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Unsigned codes uint8 [N,J,g], scales and zero points float32 [N,J]."""
        blocks = -(-self.depth // self.block)
        codes = self._unpacked(read(self.codes).reshape(self.features, blocks, -1))[..., : self.block]
        scales = read(self.scales).reshape(self.features, blocks)
        if self.zeros is None:
            return codes, scales, None
        zeros = read(self.zeros)
        if zeros.dtype == torch.uint8:
            zeros = self._unpacked(zeros.reshape(self.features, -1))[:, :blocks].float()
        return codes, scales, zeros.reshape(self.features, blocks)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Codes of bytes [..., n]: the bytes, or their low and high halves in turn, [..., 2n]."""
        if self.bits == 8:
            return packed
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def dequantize_linears(graph: ir.Graph) -> dict[str, PackedWeight]:
    """Turns each MatMulNBits into ``dspark::Linear``, its weight made when it is read; the weights by their names.

    Raises:
        UnsupportedModelError: codes of other sizes, in another order, or made while the model runs.
    """
    found: dict[str, PackedWeight] = {}
    for node in list(graph):
        if key_of(node) != (CONTRIB, "MatMulNBits"):
            continue
        packed, codes = _packed(node), node.inputs[1]
        assert codes is not None
        name = f"{codes.name}.dequantized"
        if name not in found:
            found[name] = packed
            graph.register_initializer(_constant(name, packed))
        y = insert(node, "Linear", [node.inputs[0], graph.initializers[name]], domain=OURS, name=node.name)
        bias = given(node, 5)
        if bias is not None:
            y = insert(node, "Add", [y, bias])
        node.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
    return found


def _packed(node: ir.Node) -> PackedWeight:
    features, depth, block = (int(attribute(node, name, 0)) for name in ("N", "K", "block_size"))
    bits = int(attribute(node, "bits", 4))
    if bits not in (4, 8):
        raise UnsupportedModelError(f"{named(node)}: weights of {bits} bits; only 4 and 8 can be read")
    if given(node, 4) is not None:
        raise UnsupportedModelError(f"{named(node)}: columns in another order (g_idx); export it without act-order")
    inputs = [given(node, place) for place in (1, 2, 3)]
    codes, scales, zeros = (None if value is None else value.const_value for value in inputs)
    if codes is None or scales is None or (inputs[2] is not None and zeros is None):
        raise UnsupportedModelError(f"{named(node)}: its weight is made while the model runs; give it as a constant")
    return PackedWeight(features, depth, block, bits, codes, scales, zeros)


def _constant(name: str, packed: PackedWeight) -> ir.Value:
    """A constant [N,K] that is worked out each time it is read."""
    shape = ir.Shape([packed.features, packed.depth])

    def numbers() -> ir.TensorProtocol:
        return ir.tensor(packed.dequantized().numpy(), name=name)

    tensor = ir.LazyTensor(numbers, dtype=ir.DataType.FLOAT, shape=shape, name=name)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
