"""Codes made weights again, for products of many rows: each takes part in so many that reading it twice is nothing."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.mma import PTX_TYPE
from dspark_compiler.schedules.cuda.quantized_fragments import GROUP_DEPTH
from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel

_OCTET = 8  # columns a thread makes


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
            at = row * TILE_DEPTH + T.bitwise_xor(place, row // 2 % 4) * _OCTET
            source, target = address(codes, stripe, tile // form.units, piece), address(weight, stripe, tile, at)
            run(device(_name(form), target, source, factor, source=_widen(form)))

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


def _name(form: WeightForm) -> str:
    return f"dspark_octet_{form.stored}_{PTX_TYPE[form.dtype]}"


_WORDS = "uint2 words = *(const uint2*)codes; unsigned w[2] = {words.x, words.y};"
_LOAD = {"int4": "unsigned w = *(const unsigned*)codes;", "int8": _WORDS, "float8_e4m3fn": _WORDS}
# Code i of an octet as float32. An e4m3 code's bits put where float32 has exponent and mantissa are 2^-120 times it.
_CODE = {
    "int4": "(float)((int)(w >> (i / 2 * 4 + i % 2 * 16) & 15u) - 8)",
    "int8": "(float)(signed char)(w[i / 4] >> i % 4 * 8)",
    "float8_e4m3fn": (
        "__int_as_float((int)(signed char)(w[i / 4] >> i % 4 * 8) << 20 & 0x87f00000) * __int_as_float(0x7b800000)"
    ),
}


def _widen(form: WeightForm) -> str:
    """A device function that makes 8 elements, 16 bytes, of an octet of codes."""
    kind, make = (
        ("__nv_bfloat162", "__floats2bfloat162_rn") if form.dtype == "bfloat16" else ("half2", "__floats2half2_rn")
    )
    return f"""
__device__ __forceinline__ void {_name(form)}(void* out, const void* codes, float scale) {{
  {_LOAD[form.stored]}
  float f[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) f[i] = {_CODE[form.stored]} * scale;
  {kind} pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = {make}(f[2 * i], f[2 * i + 1]);
  *(uint4*)out = *(uint4*)pairs;
}}
"""
