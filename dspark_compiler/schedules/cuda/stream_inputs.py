"""Where a streaming linear kernel takes x from: memory, or shared memory that a block fills with x's RMS norm."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH
from dspark_compiler.schedules.cuda.mma import PTX_TYPE, load_shared
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, registers, run, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

GROUP = 8  # rows of x in one product, the narrow operand's width
_OCTETS = TILE_DEPTH // 8

# (where to, first element, tile of the depth, group of rows, row of the group, octet of the tile)
Load = Callable[[Buffer, int, Expr, int, Expr, Expr], None]


@dataclass(frozen=True)
class Inputs:
    """x [rows, depth] of 2-byte elements as B fragments: 16 bytes of a row to a lane."""

    rows: int
    depth: int
    load: Load
    near: bool  # so near that nothing is won by asking early

    @property
    def groups(self) -> int:
        """Products that each tile of W takes part in."""
        return -(-self.rows // GROUP)


def written_inputs(x: Buffer) -> Inputs:
    """X as an earlier kernel wrote it."""
    rows, depth = (int(extent) for extent in x.shape)

    def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
        column = tile * TILE_DEPTH + octet * 8
        # W is zero where its last tile reaches past the depth: there x may be anything finite.
        column = column if depth % TILE_DEPTH == 0 else T.min(column, depth - 8)
        load_written(target, at, address(x, group * GROUP + _within(row, group, rows), column))

    return Inputs(rows, depth, load, near=False)


def normed_inputs(x: Buffer, weight: Buffer, epsilon: float, thread: Expr, threads: int, dtype: str) -> Inputs:
    """X * rsqrt(mean(x^2) + epsilon) * weight in ``dtype``, of x [M, K] and weight [K] float32; Zhang & Sennrich 2019.

    The block's threads work it out together, into shared memory and in the order its fragments are read in:
    [tile][row][octet][8].
    """
    rows, depth = (int(extent) for extent in x.shape)
    tiles = -(-depth // TILE_DEPTH)
    fours, warps = depth // 4, threads // WARP
    result = shared((tiles, rows, _OCTETS, 8), dtype, dynamic=True)
    partial = shared((rows, warps))
    total = registers(1)
    turns = -(-fours // threads)

    def each_four(turn: int, then: Callable[[Expr], None]) -> None:
        four = turn * threads + thread
        if (turn + 1) * threads <= fours:
            then(four)
            return
        with when(four < fours):
            then(four)

    for row in range(rows):
        T.buffer_store(total, T.float32(0.0), [0])
        for turn in range(turns):
            each_four(
                turn, lambda four, row=row: T.buffer_store(total, total[0] + _squares(address(x, row, four * 4)), [0])
            )
        T.buffer_store(total, _warp_sum(total[0]), [0])
        with when(thread % WARP == 0):
            T.buffer_store(partial, total[0], [row, thread // WARP])
    barrier()
    for row in range(rows):
        T.buffer_store(total, T.float32(0.0), [0])
        for warp in range(warps):
            T.buffer_store(total, total[0] + partial[row, warp], [0])
        scale = registers(1)
        T.buffer_store(scale, T.rsqrt(total[0] * T.float32(1.0 / depth) + T.float32(epsilon)), [0])

        def put(four: Expr, row: int = row, scale: Buffer = scale) -> None:
            place = address(result, four // 8, row, four // 2 % _OCTETS, four % 2 * 4)
            _scale_four(place, address(x, row, four * 4), address(weight, four * 4), scale[0], dtype)

        for turn in range(turns):
            each_four(turn, put)
    for column in range(depth, tiles * TILE_DEPTH, 8):
        with when(thread < rows * 8):
            place = [column // TILE_DEPTH, thread // 8, column % TILE_DEPTH // 8, thread % 8]
            T.buffer_store(result, T.cast(0, dtype), place)
    barrier()

    def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
        load_shared(target, at, address(result, tile, group * GROUP + _within(row, group, rows), octet, 0))

    return Inputs(rows, depth, load, near=True)


def _within(row: Expr, group: int, rows: int) -> Expr:
    """The row of the group, or its last one again, whose products nobody stores."""
    last = min(rows - group * GROUP, GROUP) - 1
    return row if last == GROUP - 1 else T.min(row, last)


def load_written(target: Buffer, at: int, pointer: Expr) -> None:
    """Loads 16 bytes that an earlier kernel wrote into target[at : at+4], uint32; never before ``await_previous``."""
    source = """
__device__ __forceinline__ void dspark_load_written(unsigned* d, const void* p) {
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
    : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(p) : "memory");
}
"""
    run(device("dspark_load_written", address(target, at), pointer, source=source))


def written_float(pointer: Expr) -> Expr:
    """A float32 that an earlier kernel wrote; never read before ``await_previous``."""
    source = """
__device__ __forceinline__ float dspark_written_float(const void* p) {
  float v; asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory"); return v;
}
"""
    return device("dspark_written_float", pointer, source=source, returns="float32")


def _squares(pointer: Expr) -> Expr:
    """Sum of the squares of four float32 that an earlier kernel wrote."""
    source = """
__device__ __forceinline__ float dspark_squares(const void* p) {
  float4 v;
  asm volatile("ld.global.v4.f32 {%0,%1,%2,%3}, [%4];"
    : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
  return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}
"""
    return device("dspark_squares", pointer, source=source, returns="float32")


def _scale_four(target: Expr, x: Expr, weight: Expr, scale: Expr, dtype: str) -> None:
    """target[0:4] = x[0:4] * scale * weight[0:4], rounded to ``dtype``."""
    kind = PTX_TYPE[dtype]
    name = f"dspark_scale_four_{kind}"
    source = f"""
__device__ __forceinline__ void {name}(void* d, const void* x, const void* w, float scale) {{
  float4 v, f = *(const float4*)w; uint2 r;
  asm volatile("ld.global.v4.f32 {{%0,%1,%2,%3}}, [%4];"
    : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(x) : "memory");
  asm("cvt.rn.{kind}x2.f32 %0, %1, %2;" : "=r"(r.x) : "f"(v.y * scale * f.y), "f"(v.x * scale * f.x));
  asm("cvt.rn.{kind}x2.f32 %0, %1, %2;" : "=r"(r.y) : "f"(v.w * scale * f.w), "f"(v.z * scale * f.z));
  *(uint2*)d = r;
}}
"""
    run(device(name, target, x, weight, scale, source=source))


def _warp_sum(value: Expr) -> Expr:
    """The sum over the warp, in every lane."""
    source = """
__device__ __forceinline__ float dspark_warp_sum(float v) {
  for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
"""
    return device("dspark_warp_sum", value, source=source, returns="float32")
