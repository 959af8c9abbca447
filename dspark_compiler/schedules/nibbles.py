"""Four-bit codes in words of eight, as quantized_panels.py reads them."""

import numpy as np

NIBBLES = 8  # codes in a word
ZERO = 8  # what is added to them, so that none is negative


def pack_nibbles(panels: np.ndarray) -> np.ndarray:
    """Codes int8 [..., K, P] from -8 to 7 -> uint32 [..., K/8, P], the code of the lowest k in the lowest bits."""
    *lead, depth, width = panels.shape
    codes = (panels + np.int8(ZERO)).view(np.uint8).reshape(*lead, depth // NIBBLES, NIBBLES, width)
    words = np.zeros((*lead, depth // NIBBLES, width), np.uint32)
    for place in range(NIBBLES):
        words |= codes[..., place, :].astype(np.uint32) << np.uint32(4 * place)
    return words


def unpack_nibbles(words: np.ndarray) -> np.ndarray:
    """The inverse of pack_nibbles."""
    *lead, depth, width = words.shape
    places = [(words >> np.uint32(4 * place)) & np.uint32(15) for place in range(NIBBLES)]
    codes = np.stack(places, axis=-2).astype(np.int8) - np.int8(ZERO)
    return codes.reshape(*lead, depth * NIBBLES, width)
