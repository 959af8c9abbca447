"""Weights of fewer bits in tiles for mma.m16n8k16: as in fragments.py 16 rows and 1 KB, two 16-byte loads of a lane.

A tile is 64 columns of bytes or 128 of nibbles, so 2 or 4 units of 32. Lane 4g+t finds, at bytes 16 (4g+t) of the tile
and again 512 further on for row 8+g, the octets t of row g of all units one after the other: columns 32u + 8t … + 7.

- int8, two's complement, and float8_e4m3fn: an octet is its 8 bytes in order.
- int4: an octet is one uint32, element 2j in bits 4j … 4j+3 and element 2j+1 in bits 16+4j … 16+4j+3, so that a shift
  by 4j and a mask leave a pair for tensor cores. Stored is the value plus 8, or the unsigned value if there are zeros.

Scales of a row are float32 [N]. Those of int4's groups of 128 columns are of the compute dtype, one uint32 a tile and
pair of rows: [ceil(N/16), ceil(K/128), 8], row g's in the low half and row 8+g's in the high one. Zeros lie likewise,
as -(128 + zero) in bfloat16 or -(1024 + zero) in float16, what a code under that exponent is too large by.
"""

from dataclasses import dataclass

import numpy as np

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS

TILE_BYTES = 1024
GROUP_DEPTH = 128  # columns of one int4 scale
BITS = {"int4": 4, "int8": 8, "float8_e4m3fn": 8}


def tile_depth(weight_dtype: str) -> int:
    """Columns of a tile."""
    return TILE_BYTES * 8 // TILE_ROWS // BITS[weight_dtype]


def quantized_shape(features: int, depth: int, weight_dtype: str) -> tuple[int, int, int]:
    """Shape in bytes of W [features, depth] after packing."""
    return (-(-features // TILE_ROWS), -(-depth // tile_depth(weight_dtype)), TILE_BYTES)


def group_shape(features: int, depth: int) -> tuple[int, int, int]:
    """Shape in uint32 of int4 scales or zeros after packing."""
    return (-(-features // TILE_ROWS), -(-depth // GROUP_DEPTH), TILE_ROWS // 2)


def pack_bytes(weight: np.ndarray) -> np.ndarray:
    """W [N, K] of int8, or of float8 as uint8, in tiles; zeros where the last ones reach past N and K."""
    tiles = _octets(weight.view(np.uint8), 64, 0)
    return np.ascontiguousarray(tiles).reshape(*tiles.shape[:2], TILE_BYTES)


def pack_nibbles(weight: np.ndarray, zeros: np.ndarray | None = None) -> np.ndarray:
    """W [N, K] of numbers -8 to 7, or 0 to 15 with ``zeros`` [N, ceil(K/128)], in tiles; zero past N and K."""
    codes = (weight + 8 if zeros is None else weight).astype(np.uint8)
    features, depth = weight.shape
    if depth % GROUP_DEPTH:
        last = np.full(features, 8) if zeros is None else zeros[:, -1]
        tail = np.repeat(last.astype(np.uint8)[:, None], -depth % GROUP_DEPTH, 1)
        codes = np.concatenate([codes, tail], 1)
    octets = _octets(codes, GROUP_DEPTH, 8).astype(np.uint32)
    words = np.zeros(octets.shape[:-1], np.uint32)
    for element in range(8):
        words |= octets[..., element] << np.uint32(element // 2 * 4 + element % 2 * 16)
    return np.ascontiguousarray(words).view(np.uint8).reshape(*octets.shape[:2], TILE_BYTES)


def pack_groups(values: np.ndarray) -> np.ndarray:
    """Scales or zeros [N, ceil(K/128)] of a 2-byte type (bfloat16 as its bits) in pairs of rows, uint32."""
    features, groups = values.shape
    halves = np.zeros((-(-features // TILE_ROWS) * TILE_ROWS, groups), np.uint16)
    halves[:features] = values.view(np.uint16)
    pairs = halves.reshape(-1, 2, 8, groups).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]


def pack_zeros(zeros: np.ndarray, dtype: str) -> np.ndarray:
    """Zero points 0 to 15 [N, ceil(K/128)]."""
    return pack_groups(zeros.astype(np.uint16) + np.uint16({"bfloat16": 0xC300, "float16": 0xE400}[dtype]))


@dataclass(frozen=True)
class Quantized:
    """W [N, K] in fewer bits: codes as given to ``pack_bytes`` or ``pack_nibbles``, and float32 scales."""

    codes: np.ndarray
    scales: np.ndarray  # [N], or [N, ceil(K/128)] for int4


def quantize(weight: np.ndarray, weight_dtype: str) -> Quantized:
    """W [N, K], float32, rounded to the nearest int8 or symmetric int4 code, the largest of a row or group exact."""
    if weight_dtype == "int8":
        scales = np.maximum(np.abs(weight).max(1), np.finfo(np.float32).tiny) / 127
        return Quantized(np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32))
    features, depth = weight.shape
    padded = np.zeros((features, -(-depth // GROUP_DEPTH) * GROUP_DEPTH), np.float32)
    padded[:, :depth] = weight
    groups = padded.reshape(features, -1, GROUP_DEPTH)
    scales = np.maximum(np.abs(groups).max(2), np.finfo(np.float32).tiny) / 7
    codes = np.clip(np.rint(groups / scales[..., None]), -8, 7).astype(np.int8)
    return Quantized(codes.reshape(features, -1)[:, :depth], scales.astype(np.float32))


def _octets(codes: np.ndarray, depth: int, filling: int) -> np.ndarray:
    """[row tiles, column tiles, row half, row, octet, unit, 8] of codes [N, K]."""
    features, columns = codes.shape
    shape = (-(-features // TILE_ROWS), -(-columns // depth))
    padded = np.full((shape[0] * TILE_ROWS, shape[1] * depth), filling, np.uint8)
    padded[:features, :columns] = codes
    return padded.reshape(shape[0], 2, 8, shape[1], depth // 32, 4, 8).transpose(0, 3, 1, 2, 5, 4, 6)
