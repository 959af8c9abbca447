"""Eight codes made 2-byte floats, 16 bytes, by one thread."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.mma import PTX_TYPE
from dspark_compiler.schedules.cuda.threads import device, run
from dspark_compiler.schedules.tir import Expr

OCTET = 8

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


def widen_octet(stored: str, dtype: str, target: Expr, source: Expr, scale: Expr, offset: Expr | None = None) -> None:
    """Stores eight codes of type ``stored``, times ``scale`` and plus ``offset``, as ``dtype`` at ``target``.

    ``source`` points to the codes, in the order of quantized_fragments.py.
    """
    name = f"dspark_octet_{stored}_{PTX_TYPE[dtype]}"
    kind, make = ("__nv_bfloat162", "__floats2bfloat162_rn") if dtype == "bfloat16" else ("half2", "__floats2half2_rn")
    code = f"""
__device__ __forceinline__ void {name}(void* out, const void* codes, float scale, float offset) {{
  {_LOAD[stored]}
  float f[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) f[i] = {_CODE[stored]} * scale + offset;
  {kind} pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = {make}(f[2 * i], f[2 * i + 1]);
  *(uint4*)out = *(uint4*)pairs;
}}
"""
    run(device(name, target, source, scale, T.float32(0.0) if offset is None else offset, source=code))
