"""What the 32 threads of a warp do together, or with their like: exchanges, matrices out of shared memory, part barriers."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.tir import Buffer, Expr

_SHARED = "(unsigned)__cvta_generic_to_shared"


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
    : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"({_SHARED}(p)) : "memory");
}}
"""
    run(device(name, address(target, at), pointer, source=source))


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
    run(device("dspark_part_barrier", number, T.int32(32 * warps), source=source))


def copy16_from(target: Expr, first: Expr, second: Expr, in_first: Expr, valid: Expr) -> None:
    """Starts copying 16 bytes of one of two places to shared memory (PTX ISA, "cp.async"); zeros if not ``valid``."""
    source = f"""
__device__ __forceinline__ void dspark_copy16_from(void* to, const void* a, const void* b, bool first, bool valid) {{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
    :: "r"({_SHARED}(to)), "l"(first ? a : b), "r"(valid ? 16 : 0) : "memory");
}}
"""
    run(device("dspark_copy16_from", target, first, second, in_first, valid, source=source))


def commit_copies() -> None:
    """Makes the thread's copies since the last commit a group."""
    source = """
__device__ __forceinline__ void dspark_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
"""
    run(device("dspark_commit_copies", source=source))


def wait_copies(pending: int) -> None:
    """Waits until at most ``pending`` of the thread's groups are under way."""
    source = f"""
__device__ __forceinline__ void dspark_wait_copies_{pending}() {{
  asm volatile("cp.async.wait_group {pending};" ::: "memory");
}}
"""
    run(device(f"dspark_wait_copies_{pending}", source=source))


def power_of_two(value: Expr) -> Expr:
    """2^value to float32's last bits (PTX ISA, "ex2"); 0 for -inf."""
    source = """
__device__ __forceinline__ float dspark_exp2(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
"""
    return device("dspark_exp2", value, source=source, returns="float32")


def tanh(value: Expr) -> Expr:
    """tanh, off by a few 1e-7 at most."""
    source = """
__device__ __forceinline__ float dspark_tanh(float x) { return 1.f - __fdividef(2.f, 1.f + __expf(2.f * x)); }
"""
    return device("dspark_tanh", value, source=source, returns="float32")


def store_pair(pointer: Expr, low: Expr, high: Expr) -> None:
    """Stores two float32 side by side; the pointer is a multiple of 8."""
    source = """
__device__ __forceinline__ void dspark_store_pair(void* p, float low, float high) { *(float2*)p = make_float2(low, high); }
"""
    run(device("dspark_store_pair", pointer, low, high, source=source))


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


def load_quad(target: Buffer, at: int, pointer: Expr) -> None:
    """Four float32 into target[at : at+4]; the pointer is a multiple of 16."""
    source = """
__device__ __forceinline__ void dspark_load_quad(float* d, const void* p) {
  float4 v = *(const float4*)p; d[0] = v.x; d[1] = v.y; d[2] = v.z; d[3] = v.w;
}
"""
    run(device("dspark_load_quad", address(target, at), pointer, source=source))


def copy_word(target: Expr, source: Expr) -> None:
    """Copies 4 bytes."""
    code = """
__device__ __forceinline__ void dspark_copy_word(void* to, const void* from) { *(unsigned*)to = *(const unsigned*)from; }
"""
    run(device("dspark_copy_word", target, source, source=code))
