"""Blocks of a GGUF file as codes and scales: those of its own reader's numbers, in the order of the model's rows."""

import gguf
import numpy as np
import pytest
import torch

from dspark_compiler.frontend.gguf_weights import read_blocks
from dspark_compiler.frontend.source import open_source
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.frontend.test_gguf import write
from tests.tiny_models import TINY

_Kind = gguf.GGMLQuantizationType
FORMATS = {
    _Kind.Q8_0: WeightFormat("int8", 32),
    _Kind.Q4_0: WeightFormat("int4", 32),
    _Kind.Q4_1: WeightFormat("int4", 32, offsets=True),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_stand_for_the_numbers_the_reader_gives(kind):
    rows = np.random.default_rng(0).standard_normal((6, 96), dtype=np.float32)
    data = gguf.quantize(rows, kind)
    weight = read_blocks(data, kind)
    assert weight is not None
    assert weight.format == FORMATS[kind]
    assert int(weight.codes.min()) >= (-8 if weight.format.codes == "int4" else -128)
    np.testing.assert_allclose(weight.dequantized().numpy(), gguf.dequantize(data, kind), rtol=1e-6, atol=1e-6)


def test_other_types_are_no_blocks_of_ours():
    assert read_blocks(np.zeros((2, 210), np.uint8), _Kind.Q6_K) is None


def test_the_weights_of_a_file_by_the_names_of_its_model(tmp_path):
    quantize = {
        "blk.0.attn_q.weight": _Kind.Q8_0,
        "blk.0.attn_k.weight": _Kind.Q8_0,
        "blk.1.ffn_up.weight": _Kind.Q4_0,
        "token_embd.weight": _Kind.Q8_0,
    }
    source = open_source(str(write(tmp_path / "tiny.gguf", TINY["llama"](), quantize=quantize)))
    model = source.load(torch.float32)
    stored = source.stored_weights(model)
    layers = "model.layers"
    assert stored.keys() == {
        f"{layers}.0.self_attn.q_proj.weight",
        f"{layers}.0.self_attn.k_proj.weight",
        f"{layers}.1.mlp.up_proj.weight",
    }
    for name, weight in stored.items():
        torch.testing.assert_close(weight.dequantized(), model.get_parameter(name))
