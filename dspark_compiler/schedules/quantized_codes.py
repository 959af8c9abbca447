"""Panels of quantized weights in numpy: four-bit codes in words, as quantized_panels.py reads them, and back."""

import ml_dtypes
import numpy as np

from dspark_compiler.quantization.weight_format import WeightFormat

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


def unpack_panels(
    form: WeightFormat, codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray | None = None
) -> np.ndarray:
    """The float32 panels [..., K, P] that packed codes, scales and offsets [..., G, P] stand for."""
    if form.codes == "int4":
        codes = unpack_nibbles(codes)
    elif form.codes == "float8_e4m3":
        codes = codes.view(ml_dtypes.float8_e4m3fn)
    columns = codes.shape[-2] // scales.shape[-2]
    panels: np.ndarray = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), columns, -2)
    return panels if offsets is None else panels + np.repeat(offsets, columns, -2)
