"""Layouts of packed weights: every element where the documents say."""

import numpy as np
import pytest

from dspark_compiler.schedules.cuda.fragments import fragment_shape, pack_fragments, place
from dspark_compiler.schedules.cuda.quantized_fragments import (
    group_shape,
    pack_bytes,
    pack_groups,
    pack_nibbles,
    quantized_shape,
    tile_depth,
    tile_group,
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


def test_nibbles_of_tiles() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (FEATURES, DEPTH))
    packed = pack_nibbles(codes)
    assert packed.shape == quantized_shape(FEATURES, DEPTH, "int4")
    words = packed.view(np.uint32)
    for row in range(FEATURES):
        for column in range(256):
            word = int(words[row // 16, column // 128, octet_place(row % 16, column % 128, 4) // 4])
            element = column % 8
            code = word >> (element // 2 * 4 + element % 2 * 16) & 15
            assert code - 8 == (codes[row, column] if column < DEPTH else 0)


@pytest.mark.parametrize(("stored", "columns", "depth"), [("int4", 128, 256), ("int4", 96, 288), ("int8", 320, 320)])
def test_groups_lie_in_pairs_of_rows(stored: str, columns: int, depth: int) -> None:
    group, tile = tile_group(stored, columns, depth), tile_depth(stored)
    assert group is not None
    scales = np.random.default_rng(0).standard_normal((FEATURES, depth // columns)).astype(np.float16)
    packed = pack_groups(scales, group_shape(FEATURES, depth, stored, group), columns // group)
    assert packed.shape == (3, -(-depth // tile), 8, tile // group)
    for row in range(FEATURES):
        for column in range(depth):
            pair = packed[row // 16, column // tile, row % 8, column % tile // group]
            half = np.uint16(pair >> (row % 16 // 8 * 16) & 0xFFFF)
            assert half.view(np.float16) == scales[row, column // columns]


def test_groups_that_kernels_tell() -> None:
    assert [tile_group("int4", columns, 1152) for columns in (32, 64, 96, 128, 384, 1152, 48)] == [
        *(32, 64, 32, 128, 128, 128, None)
    ]
    assert tile_group("int8", 72, 72) == 64
