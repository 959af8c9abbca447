"""Codes made weights again, for products of many rows: each takes part in so many that reading it twice is nothing."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.octets import OCTET, widen_octet
from dspark_compiler.schedules.cuda.threads import address
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def dequantize_fragments(name: str, form: WeightForm) -> tvm.tirx.PrimFunc:
    """Kernel from packed codes and scales (quantized_fragments.py) to tiles of ``form.dtype`` (fragments.py).

    Arguments: codes, scale, [offset], weight.
    """
    assert form.quantized
    stripes, tiles, size = fragment_shape(form.features, form.depth)
    octet_bytes = 4 if form.stored == "int4" else 8

    def body(codes: Buffer, scale: Buffer, *rest: Buffer) -> None:
        *offsets, weight = rest

        def octet(stripe: Expr, tile: Expr, row: Expr, place: Expr) -> None:
            factors = [_factor(form, values, stripe, tile, row) for values in (scale, *offsets)]
            piece = row // 8 * 512 + (row % 8 * 4 + place) * 16 + tile % form.units * octet_bytes
            at = row * TILE_DEPTH + T.bitwise_xor(place, row // 2 % 4) * OCTET
            source, target = address(codes, stripe, tile // form.units, piece), address(weight, stripe, tile, at)
            widen_octet(form.stored, form.dtype, target, source, *factors)

        each((stripes, tiles, TILE_ROWS, TILE_DEPTH // OCTET), octet)

    return kernel(name, [*form.args(), Arg("weight", (stripes, tiles, size), form.dtype)], body)


def _factor(form: WeightForm, factors: Buffer, stripe: Expr, tile: Expr, row: Expr) -> Expr:
    """The scale or offset of a row's columns of a 32-column tile as float32."""
    if not form.group:
        return factors[T.min(stripe * TILE_ROWS + row, form.features - 1)]
    both = factors[stripe, tile // form.units, row % 8, tile % form.units * TILE_DEPTH // form.group]
    bits = both >> T.cast(row // 8 * 16, "uint32")
    return T.cast(T.reinterpret("float16", T.cast(bits & T.uint32(0xFFFF), "uint16")), "float32")
