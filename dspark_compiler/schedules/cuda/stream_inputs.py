"""Where a streaming linear kernel takes x from: memory, or shared memory that a block fills with x's RMS norm."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH
from dspark_compiler.schedules.cuda.memory_reads import load_written
from dspark_compiler.schedules.cuda.mma import PTX_TYPE, load_shared
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, registers, run, shared
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Buffer, Expr, when

GROUP = 8  # rows of x in one product, the narrow operand's width
X_WORDS = 4  # uint32 of a group's 32 columns in each lane
_OCTETS = TILE_DEPTH // 8
_STATIC = 48 * 1024  # bytes of shared memory a kernel has without asking
_OTHER = 14 * 1024  # bytes that the rest of a kernel may use

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


def written_inputs(x: Buffer, padded: int) -> Inputs:
    """x as an earlier kernel wrote it; W's tiles reach to column ``padded``."""
    rows, depth = (int(extent) for extent in x.shape)

    def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
        column = tile * TILE_DEPTH + octet * 8
        # W is zero where its last tile reaches past the depth: there x may be anything finite.
        column = column if depth == padded else T.min(column, depth - 8)
        load_written(target, at, address(x, group * GROUP + _within(row, group, rows), column))

    return Inputs(rows, depth, load, near=False)


def normed_inputs(
    x: Buffer, weight: Buffer, epsilon: float, padded: int, thread: Expr, threads: int, dtype: str
) -> Inputs:
    """x * rsqrt(mean(x^2) + epsilon) * weight in ``dtype``, of x [M, K] and weight [K] float32; Zhang & Sennrich 2019.

    The block's threads work it out together, into shared memory and in the order its fragments are read in:
    [tile][row][octet][8].
    """
    rows, depth = (int(extent) for extent in x.shape)
    tiles = padded // TILE_DEPTH
    fours, warps = depth // 4, threads // WARP
    size = tiles * rows * TILE_DEPTH
    # TVM asks CUDA for more than it has without asking only where the dynamic part alone is.
    result = shared(max(size, _STATIC // 2) if 2 * size > _STATIC - _OTHER else size, dtype, dynamic=True)

    def place(tile: Expr, row: Expr, octet: Expr, element: Expr) -> Expr:
        return ((tile * rows + row) * _OCTETS + octet) * 8 + element

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
        T.buffer_store(total, reduce_float(total[0]), [0])
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
            target = address(result, place(four // 8, row, four // 2 % _OCTETS, four % 2 * 4))
            _scale_four(target, address(x, row, four * 4), address(weight, four * 4), scale[0], dtype)

        for turn in range(turns):
            each_four(turn, put)
    for column in range(depth, padded, 8):
        with when(thread < rows * 8):
            zero = place(column // TILE_DEPTH, thread // 8, column % TILE_DEPTH // 8, thread % 8)
            T.buffer_store(result, T.cast(T.float32(0), dtype), [zero])
    barrier()

    def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
        load_shared(target, at, address(result, place(tile, group * GROUP + _within(row, group, rows), octet, 0)))

    return Inputs(rows, depth, load, near=True)


def _within(row: Expr, group: int, rows: int) -> Expr:
    """The row of the group, or its last one again, whose products nobody stores."""
    last = min(rows - group * GROUP, GROUP) - 1
    return row if last == GROUP - 1 else T.min(row, last)


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
