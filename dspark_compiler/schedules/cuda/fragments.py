"""How a weight lies in memory for tensor cores: tiles whose 16-byte pieces serve mma and wgmma alike.

W [N, K] of 2-byte elements is cut into tiles of 16 rows by 32 columns, stored tile after tile along K:
[ceil(N/16), ceil(K/32), 512], zeros beyond the edges. A tile holds two blocks of 8 rows, a row's 32 columns are 64
bytes, and their octets (8 columns, 16 bytes) are shuffled: octet t of row g lies at place t ^ (g / 2 % 4).

- mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"): lane 4g+t loads octet t of the rows g and 8+g, 16 bytes
  each, eight lanes a line of 128. Elements 0 to 3 of both are the A fragment of a first product over half of the 32
  columns, 4 to 7 that of a second. Which columns a product sums is free as long as both operands agree: the B fragments
  of the two are elements 0 to 3 and 4 to 7 of x[g, 8t : 8t+8].
- wgmma (PTX ISA, "Shared memory matrix layout"): a block of 8 rows is an atom of the 64-byte swizzle, K-major, if it
  lies at a multiple of 512; atoms are 512 bytes apart along N, over tiles too when a stage holds them one behind the
  other, and the second 16 columns begin 32 bytes after the first.
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
    octets = weight.reshape(rows, 2, 4, 2, columns, 4, 8)  # the rows of a block in pairs
    tiles = np.empty((rows, columns, 2, 4, 2, 4, 8), weight.dtype)
    for pair in range(4):
        for octet in range(4):
            tiles[:, :, :, pair, :, octet ^ pair] = octets[:, :, pair, :, :, octet].transpose(0, 3, 1, 2, 4)
    return tiles.reshape(rows, columns, TILE)


def place(row: int, column: int) -> int:
    """Where an element of a tile lies in it."""
    return (row * 4 + (column // 8 ^ row // 2 % 4)) * 8 + column % 8
