"""Codes made weights again, for products of many rows: each takes part in so many that reading it twice is nothing."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import E4M3FN, INT8
from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.quantized_fragments import GROUP_DEPTH, tile_depth
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel

_OCTET = 8  # columns a thread makes
_ZERO = 8  # what is added to four-bit codes


def dequantize_fragments(name: str, form: WeightForm) -> tvm.tirx.PrimFunc:
    """Kernel from packed codes and scales (quantized_fragments.py) to tiles of ``form.dtype`` (fragments.py).

    Arguments: codes, scale, w. Zero points are not read.
    """
    assert form.quantized
    assert not form.zeros
    stripes, tiles, size = fragment_shape(form.features, form.depth)

    def body(codes: Buffer, scale: Buffer, w: Buffer) -> None:
        def octet(stripe: Expr, tile: Expr, row: Expr, place: Expr) -> None:
            factor = T.Bind(_scale(form, scale, stripe, tile, row))
            at = T.Bind(row * TILE_DEPTH + T.bitwise_xor(place, row // 2 % 4) * _OCTET)
            for element in range(_OCTET):
                value = _code(form, codes, stripe, tile, row, place, element) * factor
                T.buffer_store(w, T.cast(value, form.dtype), [stripe, tile, at + element])

        each((stripes, tiles, TILE_ROWS, TILE_DEPTH // _OCTET), octet)

    return kernel(name, [*form.args(), Arg("weight", (stripes, tiles, size), form.dtype)], body)


def _scale(form: WeightForm, scale: Buffer, stripe: Expr, tile: Expr, row: Expr) -> Expr:
    """The scale of a row's columns as float32."""
    if not form.grouped:
        return scale[T.min(stripe * TILE_ROWS + row, form.features - 1)]
    both = scale[stripe, tile // (GROUP_DEPTH // TILE_DEPTH), row % 8]
    bits = both >> T.cast(row // 8 * 16, "uint32")
    if form.dtype == "bfloat16":
        return T.reinterpret("float32", bits << T.uint32(16))
    return T.cast(T.reinterpret("float16", T.cast(bits & T.uint32(0xFFFF), "uint16")), "float32")


def _code(form: WeightForm, codes: Buffer, stripe: Expr, tile: Expr, row: Expr, octet: Expr, element: int) -> Expr:
    """A code as float32: where quantized_fragments.py says that it lies."""
    units = tile_depth(form.stored) // TILE_DEPTH
    piece = row // 8 * 512 + (row % 8 * 4 + octet) * 16
    if form.stored == "int4":
        first = piece + tile % units * 4 + (element // 2 * 4 + element % 2 * 16) // 8
        nibble = codes[stripe, tile // units, first] >> T.uint8(element // 2 * 4 % 8)
        return T.cast(T.cast(nibble & T.uint8(15), "int32") - _ZERO, "float32")
    stored = codes[stripe, tile // units, piece + tile % units * _OCTET + element]
    return E4M3FN.load(stored) if form.stored == "float8_e4m3fn" else INT8.load(T.reinterpret("int8", stored))
