"""Where a streaming linear kernel takes x from: memory, or shared memory that a block fills with x's RMS norm."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, copy16, wait_copies
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
    """What an earlier kernel wrote, read where it lies; W's tiles reach to column ``padded``."""
    rows, depth = (int(extent) for extent in x.shape)

    def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
        column = tile * TILE_DEPTH + octet * 8
        # W is zero where its last tile reaches past the depth: there x may be anything finite.
        column = column if depth == padded else T.min(column, depth - 8)
        load_written(target, at, address(x, group * GROUP + _within(row, group, rows), column))

    return Inputs(rows, depth, load, near=False)


def staged_inputs(x: Buffer, padded: int, thread: Expr, threads: int) -> Inputs:
    """The same, copied to shared memory first.

    The compiler moves loads of x down to where they are needed, and each waits for the L2 there: where a step takes
    long anyway, as with quantized weights, one wait for all of a short x is less. For more rows it is more.
    """
    rows, depth = (int(extent) for extent in x.shape)
    staged = _Staged(rows, padded)
    octets = depth // 8
    for start in range(0, rows * octets, threads):
        piece = start + thread
        with when(piece < rows * octets) if start + threads > rows * octets else nullcontext():
            row, octet = piece // octets, piece % octets
            target = staged.address(octet // _OCTETS, row, octet % _OCTETS, 0)
            copy16(target, address(x, row, octet * 8), tvm.tirx.const(True, "bool"))
    commit_copies()
    staged.clear(depth, thread, threads)
    wait_copies(0)
    barrier()
    return staged.inputs(depth)


class _Staged:
    """x of 2-byte elements in shared memory, in the order fragments are read in: [tile][row][octet][16 bytes].

    Tiles are of 32 columns, up to column ``padded``.
    """

    def __init__(self, rows: int, padded: int) -> None:
        self._rows, self._padded, size = rows, padded, 2 * rows * padded
        # TVM asks CUDA for more than it has without asking only where the dynamic part alone is. The type is bytes
        # because all kernels of a module that have such memory must agree on one.
        self._memory = shared(max(size, _STATIC) if size > _STATIC - _OTHER else size, "uint8", dynamic=True)

    def address(self, tile: Expr, row: Expr, octet: Expr, byte: Expr) -> Expr:
        """Pointer to a byte of an octet."""
        return address(self._memory, ((tile * self._rows + row) * _OCTETS + octet) * 16 + byte)

    def clear(self, depth: int, thread: Expr, threads: int) -> None:
        """Zeros past the depth."""
        for column in range(depth, self._padded, 8):
            for start in range(0, self._rows * 4, threads):
                word = start + thread
                with when(word < self._rows * 4):
                    target = self.address(column // TILE_DEPTH, word // 4, column % TILE_DEPTH // 8, word % 4 * 4)
                    _store_zero(target)

    def inputs(self, depth: int) -> Inputs:
        """Reads it, once it is there."""

        def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
            load_shared(target, at, self.address(tile, group * GROUP + _within(row, group, self._rows), octet, 0))

        return Inputs(self._rows, depth, load, near=True)


@dataclass(frozen=True)
class Norm:
    """An RMS norm, x * rsqrt(mean(x^2) + epsilon) * weight, x [M, K] and weight [K] float32; Zhang & Sennrich 2019."""

    x: Buffer
    weight: Buffer
    epsilon: float
    dtype: str  # of the result

    def inputs(self, padded: int, thread: Expr, warps: int) -> Inputs:
        """The result, worked out by the block into shared memory, with zeros past the depth up to ``padded``."""
        rows, depth = (int(extent) for extent in self.x.shape)
        staged = _Staged(rows, padded)
        fours = _Fours(depth // 4, thread, warps * WARP)
        partial = self._squares(fours, warps)
        for row in range(rows):
            scale = self._scale(partial, row)

            def put(four: Expr, row: int = row, scale: Buffer = scale) -> None:
                target = staged.address(four // 8, row, four // 2 % _OCTETS, four % 2 * 8)
                x, weight = address(self.x, row, four * 4), address(self.weight, four * 4)
                _scale_four(target, x, weight, scale[0], self.dtype)

            fours.each(put)
        staged.clear(depth, thread, warps * WARP)
        barrier()
        return staged.inputs(depth)

    def _squares(self, fours: "_Fours", warps: int) -> Buffer:
        """Sums of squares of what each warp has of each row, in shared memory."""
        rows = int(self.x.shape[0])
        partial, total = shared((rows, warps)), registers(1)
        for row in range(rows):
            T.buffer_store(total, T.float32(0.0), [0])

            def add(four: Expr, row: int = row) -> None:
                T.buffer_store(total, total[0] + _squares_of_four(address(self.x, row, four * 4)), [0])

            fours.each(add)
            T.buffer_store(total, reduce_float(total[0]), [0])
            with when(fours.thread % WARP == 0):
                T.buffer_store(partial, total[0], [row, fours.thread // WARP])
        barrier()
        return partial

    def _scale(self, partial: Buffer, row: int) -> Buffer:
        """The scale of a row, in each thread."""
        total = T.float32(0.0)
        for warp in range(int(partial.shape[1])):
            total = total + partial[row, warp]
        scale = registers(1)
        mean = total * T.float32(1.0 / int(self.x.shape[1]))
        T.buffer_store(scale, T.rsqrt(mean + T.float32(self.epsilon)), [0])
        return scale


@dataclass(frozen=True)
class _Fours:
    """A row's elements by fours, dealt out to a block's threads."""

    count: int
    thread: Expr
    threads: int

    def each(self, then: Callable[[Expr], None]) -> None:
        """Emits then(four) for each of this thread's."""
        for start in range(0, self.count, self.threads):
            with when(start + self.thread < self.count) if start + self.threads > self.count else nullcontext():
                then(start + self.thread)


def _within(row: Expr, group: int, rows: int) -> Expr:
    """The row of the group, or its last one again, whose products nobody stores."""
    last = min(rows - group * GROUP, GROUP) - 1
    return row if last == GROUP - 1 else T.min(row, last)


def _squares_of_four(pointer: Expr) -> Expr:
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


def _store_zero(target: Expr) -> None:
    """Stores four bytes of zero."""
    source = """
__device__ __forceinline__ void dspark_store_zero(void* d) { *(unsigned*)d = 0; }
"""
    run(device("dspark_store_zero", target, source=source))
