"""Eight codes made 2-byte floats, 16 bytes, by one thread."""

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
    kind = PTX_TYPE[dtype]
    name = f"dspark_octet_{stored}_{kind}" + ("" if offset is None else "_offset")
    # Nothing is added where there is no offset: a product of -0 stays one.
    more, plus = ("", "") if offset is None else (", float offset", " + offset")
    code = f"""
__device__ __forceinline__ void {name}(void* out, const void* codes, float scale{more}) {{
  {_LOAD[stored]}
  float f[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) f[i] = {_CODE[stored]} * scale{plus};
  unsigned d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) asm("cvt.rn.{kind}x2.f32 %0, %1, %2;" : "=r"(d[i]) : "f"(f[2 * i + 1]), "f"(f[2 * i]));
  *(uint4*)out = make_uint4(d[0], d[1], d[2], d[3]);
}}
"""
    run(device(name, target, source, scale, *([] if offset is None else [offset]), source=code))
