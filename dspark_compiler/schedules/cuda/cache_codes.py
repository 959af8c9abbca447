"""Keys and values in a byte an element: how a warp makes codes of a row, what the row's scale is, how codes are read.

The arithmetic is that of graph/reference.py, ``quantized``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import E4M3FN, INT8, Storage
from dspark_compiler.schedules.cuda.memory import store_float
from dspark_compiler.schedules.cuda.threads import device, run
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Buffer, Expr, when

_STORED = {INT8: "int8", E4M3FN: "float8_e4m3fn"}


def stored_name(storage: Storage) -> str:
    """The type of codes as octets.py spells it."""
    return _STORED[storage]


def cached(element: Expr, storage: Storage) -> Expr:
    """An element of a cache as float32, without its row's scale."""
    return storage.load(element) if storage.scaled else T.cast(element, "float32")


@dataclass(frozen=True)
class Pair:
    """Elements d and d + 1 of a row, in a lane's registers ``at`` and ``at`` + 1; ``inside`` says whether they exist.

    Where they do not, the registers hold zeros.
    """

    d: Expr
    inside: Expr
    at: int


def store_codes(
    storage: Storage, values: Buffer, pairs: Sequence[Pair], places: tuple[Sequence[Expr], Expr], lane: Expr
) -> None:
    """Stores a row that the lanes of a warp hold; ``places`` are pointers to each pair's codes and to the scale."""
    assert storage.largest is not None
    peak = T.abs(values[pairs[0].at])
    for i in [pair.at + i for pair in pairs for i in range(2)][1:]:
        peak = T.max(peak, T.abs(values[i]))
    peak = reduce_float(peak, "max")
    scale = T.Bind(_quotient(peak, T.float32(storage.largest)))
    divisor = T.Bind(T.Select(scale == T.float32(0.0), T.float32(1.0), scale))
    codes, place = places
    for pair, pointer in zip(pairs, codes, strict=True):
        with when(pair.inside):
            _store_pair(storage, pointer, values[pair.at], values[pair.at + 1], divisor)
    with when(lane == 0):
        store_float(place, scale)


def _quotient(a: Expr, b: Expr) -> Expr:
    source = "__device__ __forceinline__ float dspark_quotient(float a, float b) { return __fdiv_rn(a, b); }\n"
    return device("dspark_quotient", a, b, source=source, returns="float32")


# A row's largest element may come out a little above the largest code, since its scale was rounded.
_ENCODE = {
    INT8: """
  int a = __float2int_rn(fminf(fmaxf(__fdiv_rn(low, divisor), -127.f), 127.f));
  int b = __float2int_rn(fminf(fmaxf(__fdiv_rn(high, divisor), -127.f), 127.f));
  unsigned short codes = (a & 255) | (b & 255) << 8;""",
    # PTX ISA, "cvt": the first source becomes the upper byte.
    E4M3FN: """
  unsigned short codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
    : "=h"(codes) : "f"(__fdiv_rn(high, divisor)), "f"(__fdiv_rn(low, divisor)));""",
}


def _store_pair(storage: Storage, pointer: Expr, low: Expr, high: Expr, divisor: Expr) -> None:
    name = f"dspark_store_codes_{stored_name(storage)}"
    source = f"""
__device__ __forceinline__ void {name}(void* p, float low, float high, float divisor) {{{_ENCODE[storage]}
  *(unsigned short*)p = codes;
}}
"""
    run(device(name, pointer, low, high, divisor, source=source))
