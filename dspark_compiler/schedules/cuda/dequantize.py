"""Codes made weights again, for products of many rows: each takes part in so many that reading it twice is nothing."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.octets import OCTET, widen_octet
from dspark_compiler.schedules.cuda.quantized_fragments import GROUP_DEPTH
from dspark_compiler.schedules.cuda.threads import address
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def dequantize_fragments(name: str, form: WeightForm) -> tvm.tirx.PrimFunc:
    """Kernel from packed codes and scales (quantized_fragments.py) to tiles of ``form.dtype`` (fragments.py).

    Arguments: codes, scale, weight. Zero points are not read.
    """
    assert form.quantized
    assert not form.zeros
    stripes, tiles, size = fragment_shape(form.features, form.depth)
    octet_bytes = 4 if form.stored == "int4" else 8

    def body(codes: Buffer, scale: Buffer, weight: Buffer) -> None:
        def octet(stripe: Expr, tile: Expr, row: Expr, place: Expr) -> None:
            factor = _scale(form, scale, stripe, tile, row)
            piece = row // 8 * 512 + (row % 8 * 4 + place) * 16 + tile % form.units * octet_bytes
            at = row * TILE_DEPTH + T.bitwise_xor(place, row // 2 % 4) * OCTET
            source, target = address(codes, stripe, tile // form.units, piece), address(weight, stripe, tile, at)
            widen_octet(form.stored, form.dtype, target, source, factor)

        each((stripes, tiles, TILE_ROWS, TILE_DEPTH // OCTET), octet)

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
