"""The quantized weights of a GGUF file as codes and scales: blocks of 32 columns, Q8_0, Q4_0 and Q4_1."""

from collections.abc import Iterator

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_compiler.quantization.weight import QuantizedWeight
from dspark_compiler.quantization.weight_format import WeightFormat

_BLOCK = 32
_SAME = 1e-6
_Kind = gguf.GGMLQuantizationType


def stored_weights(reader: gguf.GGUFReader, model: PreTrainedModel) -> dict[str, QuantizedWeight]:
    """The linears' weights that are kept as such blocks, by the model's names; ``model`` is as loaded from the file."""
    architecture = str(reader.fields["general.architecture"].contents())
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for name, module in model.named_modules():
        stored = tensors.get(f"{names.get_name(name)}.weight") if isinstance(module, nn.Linear) else None
        weight = None if stored is None else read_blocks(stored.data, stored.tensor_type)
        if weight is None:
            continue
        for rows in _orders(model, len(weight.codes)):
            ordered = _picked(weight, rows)
            if torch.allclose(ordered.dequantized(), module.weight.float(), rtol=_SAME, atol=_SAME):
                found[f"{name}.weight"] = ordered
                break
    return found


def read_blocks(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> QuantizedWeight | None:
    """Rows of blocks [N, bytes], as the reader has them; None for another type of tensor.

    A block is a float16 scale d, for Q4_1 a float16 m, and 32 codes: bytes q for Q8_0, else 16 bytes whose low halves
    are the first 16 codes. Its numbers are d q, d (q - 8) for Q4_0, and d q + m for Q4_1.
    """
    if kind not in (_Kind.Q8_0, _Kind.Q4_0, _Kind.Q4_1):
        return None
    blocks = np.asarray(data, np.uint8).reshape(data.shape[0], -1, gguf.GGML_QUANT_SIZES[kind][1])
    halves = 2 if kind is _Kind.Q4_1 else 1
    factors = np.ascontiguousarray(blocks[..., : 2 * halves]).view(np.float16).astype(np.float32)
    body = np.ascontiguousarray(blocks[..., 2 * halves :])
    scales = torch.from_numpy(np.ascontiguousarray(factors[..., 0]))
    if kind is _Kind.Q8_0:
        return QuantizedWeight(WeightFormat("int8", _BLOCK), _rows(body.view(np.int8)), scales)
    codes = np.concatenate([body & 15, body >> 4], axis=-1).astype(np.int8) - np.int8(8)
    if kind is _Kind.Q4_0:
        return QuantizedWeight(WeightFormat("int4", _BLOCK), _rows(codes), scales)
    offsets = torch.from_numpy(np.ascontiguousarray(factors[..., 1])) + 8 * scales
    return QuantizedWeight(WeightFormat("int4", _BLOCK, offsets=True), _rows(codes), scales, offsets)


def _rows(codes: np.ndarray) -> Tensor:
    return torch.from_numpy(codes.reshape(codes.shape[0], -1).copy())


def _picked(weight: QuantizedWeight, rows: Tensor) -> QuantizedWeight:
    offsets = None if weight.offsets is None else weight.offsets[rows]
    return QuantizedWeight(weight.format, weight.codes[rows], weight.scales[rows], offsets)


def _orders(model: PreTrainedModel, features: int) -> Iterator[Tensor]:
    """The orders a file may keep rows in: the model's own, or pairs of a rotation side by side in each head."""
    rows = torch.arange(features)
    yield rows
    config = model.config.get_text_config()
    for heads in {config.num_attention_heads, config.num_key_value_heads}:
        if features % (2 * heads) == 0:
            yield rows.view(heads, -1, 2).swapaxes(1, 2).reshape(-1)
