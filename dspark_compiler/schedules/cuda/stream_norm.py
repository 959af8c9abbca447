"""The RMS norm of x that a block of a streaming linear kernel does for itself before it multiplies."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.mma import PTX_TYPE
from dspark_compiler.schedules.cuda.stream_inputs import OCTETS, Inputs, StagedRows
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, registers, run, shared
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Buffer, Expr, when


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
        staged = StagedRows(rows, padded)
        fours = _Fours(depth // 4, thread, warps * WARP)
        partial = self._squares(fours, warps)
        for row in range(rows):
            scale = self._scale(partial, row)

            def put(four: Expr, row: int = row, scale: Buffer = scale) -> None:
                target = staged.address(four // 8, row, four // 2 % OCTETS, four % 2 * 8)
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
