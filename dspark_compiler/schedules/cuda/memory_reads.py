"""Reads that stay where they stand: of what earlier kernels wrote, after ``await_previous``, and of weights, early.

A plain load may become one through the read-only path, which nothing holds back, or sink to where it is needed.
"""

from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.tir import Buffer, Expr


def load_written(target: Buffer, at: int, pointer: Expr) -> None:
    """Loads 16 bytes into target[at : at+4], uint32."""
    source = """
__device__ __forceinline__ void dspark_load_written(unsigned* d, const void* p) {
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
    : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(p) : "memory");
}
"""
    run(device("dspark_load_written", address(target, at), pointer, source=source))


def written_float(pointer: Expr) -> Expr:
    """A float32."""
    source = """
__device__ __forceinline__ float dspark_written_float(const void* p) {
  float v; asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory"); return v;
}
"""
    return device("dspark_written_float", pointer, source=source, returns="float32")


def weight_float(pointer: Expr) -> Expr:
    """A float32 that no kernel writes."""
    source = """
__device__ __forceinline__ float dspark_weight_float(const void* p) {
  float v; asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(p)); return v;
}
"""
    return device("dspark_weight_float", pointer, source=source, returns="float32")
