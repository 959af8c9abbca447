"""MatMulNBits of ONNX Runtime: linears whose weights are codes of 4 or 8 bits, read as the numbers they stand for.

N outputs, K inputs, blocks of g columns, J = ceil(K/g) of them: codes are bytes [N, J, g*bits/8], low half first,
scales [N, J]; zero points [N, J] are numbers, or codes packed along J. W[n,k] = (code - zero) * scale; the zero of
unsigned codes is 2^(bits-1) where none is given.
"""

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.graph import CONTRIB, OURS, attribute, given, insert
from dspark_compiler.frontend.onnx.operators.base import key_of, named
from dspark_compiler.frontend.onnx.types import read
from dspark_compiler.quantization.weight import QuantizedWeight
from dspark_compiler.quantization.weight_format import WeightFormat


def dequantize_linears(graph: ir.Graph) -> dict[str, ir.Node]:
    """Turns each MatMulNBits into ``dspark::Linear``, its weight made when it is read; the nodes by their weights.

    Raises:
        UnsupportedModelError: codes of other sizes, in another order, or made while the model runs.
    """
    found: dict[str, ir.Node] = {}
    for node in list(graph):
        if key_of(node) != (CONTRIB, "MatMulNBits"):
            continue
        _check(node)
        weight = _weight(graph, node)
        found[weight.name or ""] = node
        y = insert(node, "Linear", [node.inputs[0], weight], domain=OURS, name=node.name)
        bias = given(node, 5)
        if bias is not None:
            y = insert(node, "Add", [y, bias])
        node.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
    return found


def stored_weight(node: ir.Node) -> QuantizedWeight | None:
    """A MatMulNBits node's weight as codes and scales; None where its last block is not full."""
    depth, block, bits = (attribute(node, name, 0) for name in ("K", "block_size", "bits"))
    if depth % block:
        return None
    codes, scales, zeros = _parts(node)
    half = 1 << (bits - 1)
    features = codes.shape[0]
    offsets = None if zeros is None else (half - zeros) * scales
    if offsets is not None and not bool(offsets.any()):
        offsets = None
    form = WeightFormat("int4" if bits == 4 else "int8", block, offsets=offsets is not None)
    signed = (codes.to(torch.int16) - half).to(torch.int8).reshape(features, depth)
    return QuantizedWeight(form, signed, scales, offsets)


def _check(node: ir.Node) -> None:
    if attribute(node, "bits", 4) not in (4, 8):
        raise UnsupportedModelError(
            f"{named(node)}: weights of {attribute(node, 'bits', 4)} bits; only 4 and 8 can be read"
        )
    if given(node, 4) is not None:
        raise UnsupportedModelError(f"{named(node)}: columns in another order (g_idx); export it without act-order")
    if any(value is not None and value.const_value is None for value in (given(node, place) for place in (1, 2, 3))):
        raise UnsupportedModelError(f"{named(node)}: its weight is made while the model runs; give it as a constant")


def _weight(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """A new constant [N,K] that is worked out when it is read."""
    codes = node.inputs[1]
    assert codes is not None
    name = f"{codes.name}.dequantized"
    features, depth = attribute(node, "N", 0), attribute(node, "K", 0)
    shape = ir.Shape([features, depth])

    def dequantized() -> ir.TensorProtocol:
        return ir.tensor(_dequantized(node).numpy(), name=name)

    tensor = ir.LazyTensor(dequantized, dtype=ir.DataType.FLOAT, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(value)
    return value


def _dequantized(node: ir.Node) -> Tensor:
    codes, scales, zeros = _parts(node)
    zero = zeros[..., None] if zeros is not None else float(1 << (attribute(node, "bits", 4) - 1))
    weight = ((codes.float() - zero) * scales[..., None]).flatten(1)
    return weight[:, : attribute(node, "K", 0)].contiguous()


def _parts(node: ir.Node) -> tuple[Tensor, Tensor, Tensor | None]:
    """Unsigned codes uint8 [N,J,g], scales and zero points float32 [N,J]."""
    features, depth, block, bits = (attribute(node, name, 0) for name in ("N", "K", "block_size", "bits"))
    blocks = -(-depth // block)
    codes, scales, zeros = (_tensor(node, place) for place in (1, 2, 3))
    assert codes is not None
    assert scales is not None
    codes = codes.reshape(features, blocks, -1)
    codes = _halves(codes) if bits == 4 else codes
    if zeros is not None and zeros.dtype == torch.uint8:
        zeros = zeros.reshape(features, -1)
        zeros = (_halves(zeros)[:, :blocks] if bits == 4 else zeros).float()
    elif zeros is not None:
        zeros = zeros.reshape(features, blocks)
    return codes[..., :block], scales.reshape(features, blocks), zeros


def _halves(packed: Tensor) -> Tensor:
    """Bytes [..., n] as their low and high halves in turn, [..., 2n]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def _tensor(node: ir.Node, place: int) -> Tensor | None:
    value = given(node, place)
    return None if value is None or value.const_value is None else read(value.const_value)
