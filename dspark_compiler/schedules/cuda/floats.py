"""Float32 arithmetic that comes out the same in every kernel: the compiler fuses no product with a sum by itself."""

from dspark_compiler.schedules.cuda.threads import device
from dspark_compiler.schedules.tir import Expr


def power_of_two(value: Expr) -> Expr:
    """2^value to float32's last bits (PTX ISA, "ex2"); 0 for -inf."""
    source = """
__device__ __forceinline__ float dspark_exp2(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
"""
    return device("dspark_exp2", value, source=source, returns="float32")


def quick_tanh(value: Expr) -> Expr:
    """tanh, off by a few 1e-7 at most."""
    source = """
__device__ __forceinline__ float dspark_quick_tanh(float x) { return 1.f - __fdividef(2.f, 1.f + __expf(2.f * x)); }
"""
    return device("dspark_quick_tanh", value, source=source, returns="float32")


def fused(a: Expr, b: Expr, c: Expr) -> Expr:
    """A * b + c, rounded once."""
    source = """
__device__ __forceinline__ float dspark_fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
"""
    return device("dspark_fused", a, b, c, source=source, returns="float32")


def product(a: Expr, b: Expr) -> Expr:
    """A * b, rounded whatever it is added to."""
    source = "__device__ __forceinline__ float dspark_product(float a, float b) { return __fmul_rn(a, b); }\n"
    return device("dspark_product", a, b, source=source, returns="float32")


def bit_length(value: Expr) -> Expr:
    """Bits that a non-negative int32 takes, 0 for 0."""
    source = "__device__ __forceinline__ int dspark_bit_length(int value) { return 32 - __clz(value); }\n"
    return device("dspark_bit_length", value, source=source, returns="int32")
