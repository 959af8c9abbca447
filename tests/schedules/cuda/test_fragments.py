"""Layouts of packed weights: every element where the documents say."""

import numpy as np
import pytest

from dspark_compiler.schedules.cuda.fragments import fragment_shape, pack_fragments, place
from dspark_compiler.schedules.cuda.quantized_fragments import (
    group_shape,
    pack_bytes,
    pack_groups,
    pack_nibbles,
    pack_zeros,
    quantize,
    quantized_shape,
    tile_depth,
)

FEATURES, DEPTH = 40, 200


def test_elements_of_tiles() -> None:
    weight = np.arange(FEATURES * DEPTH, dtype=np.uint16).reshape(FEATURES, DEPTH)
    packed = pack_fragments(weight)
    assert packed.shape == fragment_shape(FEATURES, DEPTH)
    for row in range(FEATURES):
        for column in range(DEPTH):
            assert packed[row // 16, column // 32, place(row % 16, column % 32)] == weight[row, column]
    assert packed.astype(int).sum() == weight.astype(int).sum()


def octet_place(row: int, column: int, bits: int) -> int:
    """Byte of a tile where the octet of an element begins."""
    unit, octet = column // 32, column % 32 // 8
    return row // 8 * 512 + (row % 8 * 4 + octet) * 16 + unit * bits


def test_bytes_of_tiles() -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (FEATURES, DEPTH)).astype(np.int8)
    packed = pack_bytes(weight)
    assert packed.shape == quantized_shape(FEATURES, DEPTH, "int8")
    depth = tile_depth("int8")
    for row in range(FEATURES):
        for column in range(DEPTH):
            at = octet_place(row % 16, column % depth, 8) + column % 8
            assert packed[row // 16, column // depth, at].view(np.int8) == weight[row, column]


@pytest.mark.parametrize("with_zeros", [False, True])
def test_nibbles_of_tiles(with_zeros: bool) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (FEATURES, DEPTH))
    zeros = random.integers(0, 16, (FEATURES, 2))
    packed = pack_nibbles(codes, zeros) if with_zeros else pack_nibbles(codes - 8)
    assert packed.shape == quantized_shape(FEATURES, DEPTH, "int4")
    words = packed.view(np.uint32)
    for row in range(FEATURES):
        for column in range(256):
            word = int(words[row // 16, column // 128, octet_place(row % 16, column % 128, 4) // 4])
            element = column % 8
            code = word >> (element // 2 * 4 + element % 2 * 16) & 15
            nothing = zeros[row, 1] if with_zeros else 8
            assert code == (codes[row, column] if column < DEPTH else nothing)


def test_groups_lie_in_pairs_of_rows() -> None:
    scales = np.random.default_rng(0).standard_normal((FEATURES, 2)).astype(np.float16)
    packed = pack_groups(scales)
    assert packed.shape == group_shape(FEATURES, DEPTH)
    halves = packed.view(np.uint16).reshape(3, 2, 8, 2)
    for row in range(FEATURES):
        for group in range(2):
            half = halves[row // 16, group, row % 8, row % 16 // 8]
            assert half.view(np.float16) == scales[row, group]
    zeros = np.arange(32).reshape(16, 2) % 16
    lone = pack_zeros(zeros, "float16").view(np.uint16).view(np.float16).reshape(1, 2, 8, 2)
    assert (lone[0].transpose(2, 1, 0).reshape(16, 2) == -1024.0 - zeros).all()


@pytest.mark.parametrize(("weight_dtype", "most"), [("int8", 0.01), ("int4", 0.15)])
def test_codes_stand_for_their_weight(weight_dtype: str, most: float) -> None:
    weight = np.random.default_rng(0).standard_normal((FEATURES, DEPTH)).astype(np.float32)
    quantized = quantize(weight, weight_dtype)
    scales = quantized.scales[:, None] if weight_dtype == "int8" else quantized.scales[:, np.arange(DEPTH) // 128]
    assert np.linalg.norm(quantized.codes * scales - weight) < most * np.linalg.norm(weight)
