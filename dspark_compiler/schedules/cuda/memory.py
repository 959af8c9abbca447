"""Loads, stores and copies of some bytes. Loads are never moved before ``await_previous``."""

from collections.abc import Sequence

from dspark_compiler.schedules.cuda.mma import PTX_TYPE
from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.tir import Buffer, Expr

_SHARED = "(unsigned)__cvta_generic_to_shared"
_LOAD_WORD = """
__device__ __forceinline__ unsigned dspark_load_two_halves(const void* p) {
  unsigned v; asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v;
}
"""


def copy_from(size: int, target: Expr, first: Expr, second: Expr, in_first: Expr, valid: Expr) -> None:
    """Starts copying 4, 8 or 16 bytes of one of two places to shared memory (PTX ISA, "cp.async").

    Zeros if not ``valid``.
    """
    name, how = f"dspark_copy{size}_from", "cg" if size == 16 else "ca"  # only 16 can go past the L1
    source = f"""
__device__ __forceinline__ void {name}(void* to, const void* a, const void* b, bool first, bool valid) {{
  asm volatile("cp.async.{how}.shared.global [%0], [%1], {size}, %2;"
    :: "r"({_SHARED}(to)), "l"(first ? a : b), "r"(valid ? {size} : 0) : "memory");
}}
"""
    run(device(name, target, first, second, in_first, valid, source=source))


def store_pair(pointer: Expr, low: Expr, high: Expr) -> None:
    """Stores two float32 side by side; the pointer is a multiple of 8."""
    source = """
__device__ __forceinline__ void dspark_store_pair(void* p, float low, float high) {
  *(float2*)p = make_float2(low, high);
}
"""
    run(device("dspark_store_pair", pointer, low, high, source=source))


def store_quad(pointer: Expr, values: Sequence[Expr]) -> None:
    """Stores four float32 side by side; the pointer is a multiple of 16."""
    source = """
__device__ __forceinline__ void dspark_store_quad(void* p, float a, float b, float c, float d) {
  *(float4*)p = make_float4(a, b, c, d);
}
"""
    run(device("dspark_store_quad", pointer, *values, source=source))


def store_word(pointer: Expr, word: Expr) -> None:
    """Stores a uint32, often two 2-byte floats; the pointer is a multiple of 4."""
    source = "__device__ __forceinline__ void dspark_store_word(void* p, unsigned word) { *(unsigned*)p = word; }\n"
    run(device("dspark_store_word", pointer, word, source=source))


def load_float(pointer: Expr) -> Expr:
    """The float32 there."""
    source = "__device__ __forceinline__ float dspark_load_float(const void* p) { return *(const float*)p; }\n"
    return device("dspark_load_float", pointer, source=source, returns="float32")


def store_float(pointer: Expr, value: Expr) -> None:
    """Stores a float32."""
    source = "__device__ __forceinline__ void dspark_store_float(void* p, float value) { *(float*)p = value; }\n"
    run(device("dspark_store_float", pointer, value, source=source))


def copy_word(target: Expr, pointer: Expr) -> None:
    """Copies 4 bytes from global memory."""
    store_word(target, device("dspark_load_two_halves", pointer, source=_LOAD_WORD, returns="uint32"))


def load_int(pointer: Expr) -> Expr:
    """The int32 there, in global memory."""
    source = """
__device__ __forceinline__ int dspark_load_int(const void* p) {
  int v; asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v;
}
"""
    return device("dspark_load_int", pointer, source=source, returns="int32")


def load_floats(target: Buffer, at: int, pointer: Expr, count: int) -> None:
    """``count`` float32, 2 or 4, of global memory into target[at : at+count]; pointers are multiples of their size."""
    outs = ", ".join(f'"=f"(d[{i}])' for i in range(count))
    names = ", ".join(f"%{i}" for i in range(count))
    name = f"dspark_load_floats_{count}"
    source = f"""
__device__ __forceinline__ void {name}(float* d, const void* p) {{
  asm volatile("ld.global.v{count}.f32 {{{names}}}, [%{count}];" : {outs} : "l"(p) : "memory");
}}
"""
    run(device(name, address(target, at), pointer, source=source))


def load_words(target: Buffer, pointer: Expr) -> None:
    """Two uint32 of global memory into target[0:2]; the pointer is a multiple of 8."""
    source = """
__device__ __forceinline__ void dspark_load_words(unsigned* d, const void* p) {
  asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "l"(p) : "memory");
}
"""
    run(device("dspark_load_words", address(target), pointer, source=source))


def load_pair(pointer: Expr, stored: str, wanted: str) -> Expr:
    """Two elements of global memory as a pair of 2-byte floats; ``stored`` is their type, ``wanted`` or float32."""
    if stored != "float32":
        return device("dspark_load_two_halves", pointer, source=_LOAD_WORD, returns="uint32")
    kind = PTX_TYPE[wanted]
    source = f"""
__device__ __forceinline__ unsigned dspark_load_pair_{kind}(const void* p) {{
  float low, high; unsigned d;
  asm volatile("ld.global.v2.f32 {{%0, %1}}, [%2];" : "=f"(low), "=f"(high) : "l"(p) : "memory");
  asm("cvt.rn.{kind}x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}}
"""
    return device(f"dspark_load_pair_{kind}", pointer, source=source, returns="uint32")


def clear16(pointer: Expr) -> None:
    """Stores 16 bytes of zeros; the pointer is a multiple of 16."""
    source = """
__device__ __forceinline__ void dspark_clear16(void* p) { *(uint4*)p = make_uint4(0, 0, 0, 0); }
"""
    run(device("dspark_clear16", pointer, source=source))
