"""Device functions on registers: tensor core products, wide loads, conversions to pairs of 2-byte floats.

``dtype`` is "bfloat16" or "float16" throughout; a pair of those travels as one uint32, the first in the low half.
"""

from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.tir import Buffer, Expr

PTX_TYPE = {"bfloat16": "bf16", "float16": "f16"}


def multiply_add(sums: Buffer, a: Buffer, b: Buffer, dtype: str, *, at: tuple[int, int, int] = (0, 0, 0)) -> None:
    """sums[4] += A B for a warp, mma.m16n8k16: a uint32[4], b uint32[2], fp32 sums; ``at`` is where each begins."""
    kind = PTX_TYPE[dtype]
    name = f"dspark_mma_{kind}"
    source = f"""
__device__ __forceinline__ void {name}(float* d, const unsigned* a, const unsigned* b) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
    "{{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
"""
    run(device(name, address(sums, at[0]), address(a, at[1]), address(b, at[2]), source=source))


def load_once(target: Buffer, at: int, pointer: Expr) -> None:
    """Loads 16 bytes that nobody will read again into target[at : at+4], uint32."""
    source = """
__device__ __forceinline__ void dspark_load_once(unsigned* d, const void* p) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
    : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(p));
}
"""
    run(device("dspark_load_once", address(target, at), pointer, source=source))


def load_shared(target: Buffer, at: int, pointer: Expr) -> None:
    """Loads 16 bytes from shared or global memory into target[at : at+4], uint32; others may read them, too."""
    source = """
__device__ __forceinline__ void dspark_load16(unsigned* d, const void* p) {
  uint4 v = *(const uint4*)p; d[0] = v.x; d[1] = v.y; d[2] = v.z; d[3] = v.w;
}
"""
    run(device("dspark_load16", address(target, at), pointer, source=source))


def pack_pair(low: Expr, high: Expr, dtype: str) -> Expr:
    """Two float32 rounded to ``dtype``, as one uint32."""
    kind = PTX_TYPE[dtype]
    source = f"""
__device__ __forceinline__ unsigned dspark_pack_{kind}(float low, float high) {{
  unsigned d; asm("cvt.rn.{kind}x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low)); return d;
}}
"""
    return device(f"dspark_pack_{kind}", low, high, source=source, returns="uint32")
