import numpy as np
import pytest
import torch

from dspark_compiler.quantization.weight import quantize
from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.layouts import PanelLayouts
from dspark_compiler.schedules.rows import last_row, packed_embedding, quantized_embedding, row_embedding
from tests.schedules.kernels import WIDEST, build, from_bfloat16_bits, normal, to_bfloat16_bits

VOCAB, DEPTH = WIDEST.panel + 7, 12


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("packed", [True, False])
def test_embedding_picks_rows_and_clamps_ids(tokens: int, packed: bool) -> None:
    weight, y = normal(VOCAB, DEPTH), np.zeros((tokens, DEPTH), np.float32)
    ids = np.random.default_rng(1).integers(0, VOCAB, tokens)
    ids[:2] = (-4, VOCAB + 100)
    kernel = (packed_embedding if packed else row_embedding)("embedding", tokens, VOCAB, DEPTH, WIDEST)
    build(kernel)(ids, PanelLayouts(WIDEST).pack(weight) if packed else weight, y)
    np.testing.assert_array_equal(y, weight[ids.clip(0, VOCAB - 1)])


def test_embedding_of_bfloat16() -> None:
    bits, y = to_bfloat16_bits(normal(VOCAB, DEPTH)), np.zeros((1, DEPTH), np.float32)
    build(row_embedding("embedding", 1, VOCAB, DEPTH, WIDEST, weight_dtype="uint16"))(np.array([5]), bits, y)
    np.testing.assert_array_equal(y[0], from_bfloat16_bits(bits)[5])


def test_last_row_is_the_last_real_token() -> None:
    x, y = normal(4, 6, DEPTH), np.zeros((4, 1, DEPTH), np.float32)
    build(last_row("last", 4, 6, DEPTH, WIDEST))(x, np.array([1, 6, 3, 0], np.int32), y)
    np.testing.assert_array_equal(y[:, 0], x[np.arange(4), [0, 5, 2, 0]])


@pytest.mark.parametrize("tag", ["int8", "float8_e4m3"])
def test_embeddings_out_of_codes(tag: str) -> None:
    form = WeightFormat.parse(tag)
    assert form is not None
    weight = quantize(torch.from_numpy(normal(VOCAB, DEPTH)), form)
    layouts = PanelLayouts(WIDEST)
    codes = layouts.pack_codes(form, weight.codes.view(torch.uint8 if tag == "float8_e4m3" else torch.int8).numpy())
    scales = layouts.pack_factors(form, weight.scales.numpy(), exact=False)
    ids = np.array([0, VOCAB - 1, 3, 3], np.int64)
    found = np.full((4, DEPTH), np.nan, np.float32)
    kernel = quantized_embedding("rows", 4, VOCAB, DEPTH, WIDEST, codes_kept=form.codes, scale_dtype="float32")
    build(kernel)(ids, codes, scales, found)
    np.testing.assert_array_equal(found, weight.dequantized().numpy()[ids])
