"""Weights in the forms they are stored in, on their way from a lane's 32 bytes of a tile to tensor core operands."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, fragment_shape
from dspark_compiler.schedules.cuda.mma import PTX_TYPE
from dspark_compiler.schedules.cuda.quantized_fragments import BITS, group_shape, quantized_shape, tile_depth
from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.tir import Arg, Buffer, Expr

TILE_WORDS = 8  # uint32 of a tile in each lane
FRAGMENT_WORDS = 8  # uint32 of the A fragments of 32 columns


@dataclass(frozen=True)
class WeightForm:
    """W [features, depth] as ``stored``: the compute dtype itself, "int8", "int4" or "float8_e4m3fn".

    Codes have a scale, and perhaps an ``offset`` that is added, for each ``group`` columns of a row within a tile
    (``tile_group``); with 0 a scale for all of a row.
    """

    features: int
    depth: int
    stored: str
    dtype: str
    group: int = 0
    offsets: bool = False

    @property
    def quantized(self) -> bool:
        """Whether fragments have to be made from codes."""
        return self.stored in BITS

    @property
    def groups(self) -> int:
        """Scales of a tile's row, 0 where a row has one."""
        return tile_depth(self.stored) // self.group if self.group else 0

    @property
    def units(self) -> int:
        """32-column steps of a tile."""
        return tile_depth(self.stored) // TILE_DEPTH if self.quantized else 1

    def args(self) -> list[Arg]:
        """The packed weight, its scales and its offsets."""
        if not self.quantized:
            return [Arg("w", fragment_shape(self.features, self.depth), self.dtype)]
        codes = Arg("w", quantized_shape(self.features, self.depth, self.stored), "uint8")
        if not self.group:
            return [codes, Arg("scale", (self.features,))]
        shape = group_shape(self.features, self.depth, self.stored, self.group)
        return [codes, Arg("scale", shape, "uint32"), *([Arg("offset", shape, "uint32")] if self.offsets else [])]

    def load_factors(self, target: Buffer, at: int, factors: Buffer, stripe: Expr, tile: Expr, lane: Expr) -> None:
        """Asks for the scales or offsets of a lane's two rows of a tile, which no kernel writes."""
        count, name = self.groups, f"dspark_load_factors_{self.groups}"
        words = ", ".join(f"%{i}" for i in range(count))
        outs = ", ".join(f'"=r"(d[{i}])' for i in range(count))
        width = "" if count == 1 else f".v{count}"
        source = f"""
__device__ __forceinline__ void {name}(unsigned* d, const void* p) {{
  asm volatile("ld.global.nc{width}.u32 {words if count == 1 else "{" + words + "}"}, [%{count}];"
    : {outs} : "l"(p));
}}
"""
        run(device(name, address(target, at), address(factors, stripe, tile, lane // 4, 0), source=source))

    def load(self, target: Buffer, at: int, w: Buffer, stripe: Expr, tile: Expr, lane: Expr) -> None:
        """Asks for a lane's two pieces of a tile; nobody will read them again."""
        row, octet = lane // 4, lane % 4
        place, name, order = lane * 16, "dspark_load_codes", [0, 1, 2, 3, 4, 5, 6, 7]
        if not self.quantized:
            # Words alternate between the halves, as in an A fragment.
            place, name = row * 32 + T.bitwise_xor(octet, row // 2) * 8, "dspark_load_tile"
            order = [0, 2, 4, 6, 1, 3, 5, 7]
        words = [f'"=r"(d[{i}])' for i in order]
        loads = "\n".join(
            f'  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {{%0,%1,%2,%3}}, [%4+{512 * half}];"\n'
            f'    : {", ".join(words[4 * half : 4 * half + 4])} : "l"(p));'
            for half in range(2)
        )
        source = f"""
__device__ __forceinline__ void {name}(unsigned* d, const void* p) {{
{loads}
}}
"""
        run(device(name, address(target, at), address(w, stripe, tile, place), source=source))

    def fragments(self, target: Buffer, codes: Buffer, at: int, unit: int) -> None:
        """target[0:8]: the two A fragments of a unit from the tile at ``codes[at]``, scales and offsets left out."""
        kind = PTX_TYPE[self.dtype]
        name = f"dspark_widen_{self.stored}_{kind}"
        step = 1 if self.stored == "int4" else 2  # words of an octet
        source = _WIDEN[self.stored](name, kind)
        run(device(name, address(target), address(codes, at + unit * step), source=source))


def fill_ones(fragment: Buffer, dtype: str) -> None:
    """Makes all of an A fragment ones: products with it are sums of columns, in C fragments for every feature."""
    ones = {"bfloat16": 0x3F803F80, "float16": 0x3C003C00}[dtype]
    for i in range(4):
        T.buffer_store(fragment, T.uint32(ones), [i])


def add_scaled(sums: Buffer, part: Buffer, factors: Expr) -> None:
    """Adds part * factor to sums, C fragments, where the halves of ``factors`` belong to rows g and 8+g."""
    source = """
__device__ __forceinline__ void dspark_add_scaled(float* d, const float* part, unsigned factors) {
  float low, high;
  asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
    : "=f"(low), "=f"(high) : "r"(factors));
  d[0] += part[0] * low; d[1] += part[1] * low; d[2] += part[2] * high; d[3] += part[3] * high;
}
"""
    run(device("dspark_add_scaled", address(sums), address(part), factors, source=source))


def _pairs(name: str, per_half: str, body: str) -> str:
    """A device function that makes word i of both fragments, rows of half h, by ``body`` from ``per_half``'s words."""
    return f"""
__device__ __forceinline__ void {name}(unsigned* d, const unsigned* w) {{
#pragma unroll
  for (int h = 0; h < 2; ++h) {{
    {per_half}
#pragma unroll
    for (int i = 0; i < 4; ++i) {{
      {body}
      d[i / 2 * 4 + i % 2 * 2 + h] = r;
    }}
  }}
}}
"""


def _fused(kind: str, name: str, a: str, b: str, c: str) -> str:
    """PTX for a * b + c on pairs."""
    return f'asm("fma.rn.{kind}x2 %0, %1, %2, %3;" : "=r"({name}) : "r"({a}), "r"({b}), "r"({c}));'


def _masked(name: str, a: str, mask: str, c: str) -> str:
    """PTX for (a & mask) | c in one instruction."""
    return f'asm("lop3.b32 %0, %1, {mask}, %2, 0xea;" : "=r"({name}) : "r"({a}), "r"({c}));'


def _widen_int4(name: str, kind: str) -> str:
    """Codes under the exponent of 128 (1024 in fp16) count from there; 136 (1032) goes off."""
    bfloat = kind == "bf16"
    base, one, less = (
        ("0x43004300u", "0x3f803f80u", "0xc308c308u") if bfloat else ("0x64006400u", "0x3c003c00u", "0xe408e408u")
    )
    origin = f"unsigned o = {less};"
    body = f"unsigned v, r; {_masked('v', 'w[4 * h] >> 4 * i', '0x000f000f', base)} {_fused(kind, 'r', 'v', one, 'o')}"
    return _pairs(name, origin, body)


def _widen_int8(name: str, kind: str) -> str:
    """The low 7 bits under the exponent of 128, less 128 or, where the sign bit is set, 256."""
    pick = "unsigned v = __byte_perm(w[4 * h + i / 2], {0}, i % 2 ? 0x4342 : 0x4140), r;"
    if kind == "bf16":
        # The sign bit is the exponent's lowest, so it makes 256 of the 128 that goes off.
        less = _fused(kind, "r", "off", "0xbf80bf80u", "low")
        body = pick.format("0x43434343u") + " unsigned low = v & 0xff7fff7fu, off = v & 0xff80ff80u; " + less
    else:
        # With the sign bit turned over a code counts from 1024 + 128.
        less = _fused(kind, "r", "v", "0x3c003c00u", "0xe480e480u")
        body = pick.format("0x64646464u") + " v ^= 0x00800080u; " + less
    return _pairs(name, "", body)


def _widen_float8(name: str, kind: str) -> str:
    """Exponent and mantissa moved into place, 2^120 (2^8 in fp16) too small for the wider exponent's bias."""
    shift, mask, factor = (4, "0x07f007f0u", "0x7b807b80u") if kind == "bf16" else (1, "0x3f803f80u", "0x5c005c00u")
    body = (
        "unsigned v = __byte_perm(w[4 * h + i / 2], 0, i % 2 ? 0x3424 : 0x1404), m, r; "
        f"m = v >> {shift} & {mask}; {_masked('v', 'v', '0x80008000', 'm')} "
        + _fused(kind, "r", "v", factor, "0x80008000u")
    )
    return _pairs(name, "", body)


_WIDEN = {"int4": _widen_int4, "int8": _widen_int8, "float8_e4m3fn": _widen_float8}
