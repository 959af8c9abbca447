"""How a weight lies in memory for tensor cores: tiles whose 16-byte pieces serve mma and wgmma alike.

W [N, K] of 2-byte elements is cut into tiles of 16 rows by 32 columns, stored tile after tile along K:
[ceil(N/16), ceil(K/32), 512], zeros beyond the edges. A tile holds eight core matrices of 8 rows by 8 columns (128
bytes, a row's 8 elements are 16 of them), ordered [row half h][column octet t][row g][8]:

- mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"): lane 4g+t loads the pieces (0,t,g) and (1,t,g), 16 bytes
  each, the warp 512 in a row. Elements 0 to 3 of both are the A fragment of a first product over half of the 32
  columns, 4 to 7 that of a second. Which columns a product sums is free as long as both operands agree: the B fragments
  of the two are elements 0 to 3 and 4 to 7 of x[g, 8t : 8t+8].
- wgmma without swizzle (PTX ISA, "Shared memory matrix layout"): core matrices are 128 bytes apart along K and 512
  along N, over tiles too when a stage holds them one behind the other.
"""

import numpy as np

TILE_ROWS, TILE_DEPTH = 16, 32
TILE = TILE_ROWS * TILE_DEPTH


def fragment_shape(features: int, depth: int) -> tuple[int, int, int]:
    """Shape of W [features, depth] after packing."""
    return (-(-features // TILE_ROWS), -(-depth // TILE_DEPTH), TILE)


def pack_fragments(weight: np.ndarray) -> np.ndarray:
    """W [N, K] in tiles, zeros where the last ones reach past N and K."""
    features, depth = weight.shape
    rows, columns, _ = fragment_shape(features, depth)
    if (rows * TILE_ROWS, columns * TILE_DEPTH) != weight.shape:
        padded = np.zeros((rows * TILE_ROWS, columns * TILE_DEPTH), weight.dtype)
        padded[:features, :depth] = weight
        weight = padded
    tiles = weight.reshape(rows, 2, 8, columns, 4, 8).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(tiles).reshape(rows, columns, TILE)


def place(row: int, column: int) -> int:
    """Where an element of a tile lies in it."""
    return ((row // 8 * 4 + column // 8) * 8 + row % 8) * 8 + column % 8
