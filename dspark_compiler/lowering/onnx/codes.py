"""Quantized weights as MatMulNBits takes them.

N outputs, K inputs, G blocks of columns that share a scale. Codes become unsigned and are kept as [N,G,bytes], two of
four bits in a byte, the first one low. A scale of more columns than a block has is written once for each of its blocks.
"""

import math

import torch
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.onnx.emitter import CONTRIB, Emitter, Tensor

_LARGEST_BLOCK, _SMALLEST_BLOCK = 128, 16  # columns, a power of two
# On a processor eight bits have fast kernels only with activations rounded to eight bits, too, and four bits take 0.4
# of the time so. It means nothing on a GPU.
_ROUNDED_ACTIVATIONS = 4


def pack_codes(program: Program) -> None:
    """Gives codes, scales and offsets of quantized weights the form that models read.

    Raises:
        LoweringError: codes, or groups of columns, that MatMulNBits has no form for.
    """
    for call in _weights(program).values():
        assert call.format is not None
        codes, *factors = (node.meta["ref"] for node in (call.weight, *call.factors))
        held, scales = program.params[codes], program.params[factors[0]]
        if factors[1:] and call.format.bits == 8:
            raise LoweringError(f"{codes}: codes of 8 bits with offsets have no ONNX form here; leave out --quantize")
        block = _block(codes, held, held.shape[1] // scales.shape[1])
        repeats = held.shape[1] // block // scales.shape[1]
        zero = 1 << (call.format.bits - 1)
        program.params[codes] = _packed(held, call.format.bits, zero, block)
        program.params[factors[0]] = scales.repeat_interleave(repeats, 1)
        for offsets in factors[1:]:  # code * scale + offset = (code + zero - point) * scale
            point = zero - program.params[offsets].float() / torch.where(scales == 0, 1, scales).float()
            program.params[offsets] = point.to(scales.dtype).repeat_interleave(repeats, 1)
    for entry in program.entries.values():
        for node in entry.graph.graph.nodes:
            if node.op == "placeholder" and (param := program.params.get(node.meta["ref"])) is not None:
                node.meta["val"] = param.to("meta")


def _weights(program: Program) -> dict[str, LinearCall]:
    """A product with each quantized weight, by the name of its codes."""
    calls = (LinearCall.of(node) for entry in program.entries.values() for node in entry.graph.graph.nodes)
    return {call.weight.meta["ref"]: call for call in calls if call is not None and call.format is not None}


def _block(ref: str, codes: torch.Tensor, columns: int) -> int:
    block = math.gcd(columns, _LARGEST_BLOCK)
    if codes.dtype is not torch.int8 or block < _SMALLEST_BLOCK:
        kind = str(codes.dtype).removeprefix("torch.")
        raise LoweringError(
            f"{ref}: {kind} codes whose scales hold for {columns} columns have no ONNX form; MatMulNBits takes "
            f"integers in blocks of {_SMALLEST_BLOCK} columns or more: leave out --quantize, or take another target"
        )
    return block


def _packed(codes: torch.Tensor, bits: int, zero: int, block: int) -> torch.Tensor:
    """uint8 [N,G,block*bits/8] of int8 [N,K]."""
    blocks = (codes.to(torch.int16) + zero).to(torch.uint8).view(codes.shape[0], -1, block)
    return blocks if bits == 8 else blocks[..., ::2] | blocks[..., 1::2] << 4


def quantized_linear(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.quantized_linear."""
    given = bound_args(node)
    (features, blocks, _), depth = shape_of(given["codes"]), shape_of(given["x"])[-1]
    rows = math.prod(shape_of(given["x"])) // depth
    x = emitter.viewed(given["x"], rows, depth)
    codes, scales = emitter.get(given["codes"]), emitter.get(given["scales"])
    points, bias = (None if given[name] is None else emitter.get(given[name]) for name in ("offsets", "bias"))
    product = emitter.op(
        "MatMulNBits",
        *(x, codes, scales, points, None, bias),
        dtype=x.dtype,
        domain=CONTRIB,
        K=depth,
        N=features,
        bits=given["bits"],
        block_size=depth // blocks,
        accuracy_level=_ROUNDED_ACTIVATIONS,
    )
    return emitter.tensor_of(node, product, (rows, features))


def quantized_embedding(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.quantized_embedding: rows of codes of eight bits."""
    given = bound_args(node)
    count, (_, blocks, block) = math.prod(shape_of(given["ids"])), shape_of(given["codes"])
    ids = emitter.viewed(given["ids"], count)
    codes, scales = (emitter.get(given[name]).gather(ids) for name in ("codes", "scales"))
    rows = (codes.cast(scales.dtype) - 128) * scales.unsqueeze(2)
    return emitter.tensor_of(node, rows.reshape(count, blocks * block), (count, blocks * block))
