"""What the threads of a warp do together: exchanges, matrices from shared memory, barriers with other warps."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import WARP, address, device, run
from dspark_compiler.schedules.tir import Buffer, Expr


def from_lane(value: Expr, distance: int) -> Expr:
    """The float32 of the lane whose number differs in the bit ``distance``."""
    source = """
__device__ __forceinline__ float dspark_from_lane(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}
"""
    return device("dspark_from_lane", value, T.int32(distance), source=source, returns="float32")


def load_matrices(target: Buffer, at: int, pointer: Expr, *, transposed: bool = False) -> None:
    """Four 8x8 matrices of 2-byte elements into target[at : at+4], uint32 (PTX ISA, "ldmatrix").

    Lane 8m+r points to row r of matrix m, 16 bytes of shared memory. Lane 4g+t gets elements 2t and 2t+1 of row g,
    of column g where ``transposed``.
    """
    name = "dspark_ldmatrix_trans" if transposed else "dspark_ldmatrix"
    source = f"""
__device__ __forceinline__ void {name}(unsigned* d, const void* p) {{
  asm volatile("ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{%0,%1,%2,%3}}, [%4];"
    : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"((unsigned)__cvta_generic_to_shared(p)) : "memory");
}}
"""
    run(device(name, address(target, at), pointer, source=source))


def swap_pairs(target: Buffer, *values: Expr) -> None:
    """Of an even lane's first pair of ``values`` and the next lane's, target[4]; odd lanes: of the second pairs."""
    source = """
__device__ __forceinline__ void dspark_swap_pairs(float* d, float a0, float a1, float b0, float b1) {
  bool odd = threadIdx.x % 2;
  float low = __shfl_xor_sync(0xffffffffu, odd ? a0 : b0, 1), high = __shfl_xor_sync(0xffffffffu, odd ? a1 : b1, 1);
  d[0] = odd ? low : a0; d[1] = odd ? high : a1; d[2] = odd ? b0 : low; d[3] = odd ? b1 : high;
}
"""
    run(device("dspark_swap_pairs", address(target), *values, source=source))


def part_barrier(number: Expr, warps: int) -> None:
    """``warps`` warps of a block that name the same barrier, 1 to 15, wait for each other."""
    if warps == 1:
        source = "__device__ __forceinline__ void dspark_warp_barrier() { __syncwarp(); }\n"
        run(device("dspark_warp_barrier", source=source))
        return
    source = """
__device__ __forceinline__ void dspark_part_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(number), "r"(threads) : "memory");
}
"""
    run(device("dspark_part_barrier", number, T.int32(WARP * warps), source=source))
