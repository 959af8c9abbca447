"""Weights of fewer bits in tiles for mma.m16n8k16: as in fragments.py 16 rows and 1 KB, two 16-byte loads of a lane.

A tile is 64 columns of bytes or 128 of nibbles, so 2 or 4 units of 32. Lane 4g+t finds, at bytes 16 (4g+t) of the tile
and again 512 further on for row 8+g, the octets t of row g of all units one after the other: columns 32u + 8t … + 7.

- int8, two's complement, and float8_e4m3fn: an octet is its 8 bytes in order.
- int4: an octet is one uint32, element 2j in bits 4j … 4j+3 and element 2j+1 in bits 16+4j … 16+4j+3, so that a shift
  by 4j and a mask leave a pair for tensor cores. Stored is the value plus 8.

Scales of a row are float32 [N]. Those of groups of columns are float16, one uint32 a group and pair of rows, row g's in
the low half and row 8+g's in the high one; a lane finds those of a tile's groups one after the other: [ceil(N/16),
tiles, 8, groups of a tile]. Offsets lie likewise. Groups wider than a tile are told again for each.
"""

import numpy as np

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS

TILE_BYTES = 1024
LEAST_GROUP = 32  # columns, those of a unit
BITS = {"int4": 4, "int8": 8, "float8_e4m3fn": 8}


def tile_depth(weight_dtype: str) -> int:
    """Columns of a tile."""
    return TILE_BYTES * 8 // TILE_ROWS // BITS[weight_dtype]


def quantized_shape(features: int, depth: int, weight_dtype: str) -> tuple[int, int, int]:
    """Shape in bytes of W [features, depth] after packing."""
    return (-(-features // TILE_ROWS), -(-depth // tile_depth(weight_dtype)), TILE_BYTES)


def tile_group(weight_dtype: str, columns: int, depth: int) -> int | None:
    """Columns of a tile that share a scale where each ``columns`` of a row do; None where kernels cannot tell them."""
    tile = tile_depth(weight_dtype)
    choices = [group for group in (tile, tile // 2, LEAST_GROUP) if columns % group == 0]
    return next(iter(choices), None) if columns < depth else next(iter(choices), tile)


def group_shape(features: int, depth: int, weight_dtype: str, group: int) -> tuple[int, int, int, int]:
    """Shape in uint32 of scales or offsets of groups of a tile's columns after packing."""
    stripes, tiles, _ = quantized_shape(features, depth, weight_dtype)
    return (stripes, tiles, TILE_ROWS // 2, tile_depth(weight_dtype) // group)


def pack_bytes(weight: np.ndarray) -> np.ndarray:
    """W [N, K] of int8, or of float8 as uint8, in tiles; zeros where the last ones reach past N and K."""
    tiles = _octets(weight.view(np.uint8), 64, 0)
    return np.ascontiguousarray(tiles).reshape(*tiles.shape[:2], TILE_BYTES)


def pack_nibbles(weight: np.ndarray) -> np.ndarray:
    """W [N, K] of numbers -8 to 7 in tiles; zero past N and K."""
    octets = _octets((weight + 8).astype(np.uint8), tile_depth("int4"), 8).astype(np.uint32)
    words = np.zeros(octets.shape[:-1], np.uint32)
    for element in range(8):
        words |= octets[..., element] << np.uint32(element // 2 * 4 + element % 2 * 16)
    return np.ascontiguousarray(words).view(np.uint8).reshape(*octets.shape[:2], TILE_BYTES)


def pack_groups(values: np.ndarray, shape: tuple[int, int, int, int], times: int = 1) -> np.ndarray:
    """Scales or offsets [N, G], each for ``times`` groups of tiles, in pairs of rows: float16 as uint32 of ``shape``.

    Zeros past N and K.
    """
    stripes, tiles, _, per_tile = shape
    spread = np.zeros((stripes * TILE_ROWS, tiles * per_tile), np.float16)
    repeated = np.repeat(values, times, 1)[:, : tiles * per_tile]
    spread[: repeated.shape[0], : repeated.shape[1]] = repeated
    pairs = spread.view(np.uint16).reshape(stripes, 2, 8, tiles, per_tile).transpose(0, 3, 2, 4, 1)
    return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]


def _octets(codes: np.ndarray, depth: int, filling: int) -> np.ndarray:
    """[row tiles, column tiles, row half, row, octet, unit, 8] of codes [N, K]."""
    features, columns = codes.shape
    shape = (-(-features // TILE_ROWS), -(-columns // depth))
    padded = np.full((shape[0] * TILE_ROWS, shape[1] * depth), filling, np.uint8)
    padded[:features, :columns] = codes
    return padded.reshape(shape[0], 2, 8, shape[1], depth // 32, 4, 8).transpose(0, 3, 1, 2, 5, 4, 6)
