"""RMS norm between linear kernels without a pass of its own: y = W (x * w * r) = r (W (x * w)), r = 1 / rms(x).

The kernel that makes x [M, N] also makes x * w in the compute dtype, and sums of squares of each 16 columns, [M, N/16].
The next takes that product as its input and multiplies its sums by r. The scale r is a row's, so nothing is lost by
rounding before it, as long as x * w stays within the compute dtype: bfloat16 has float32's range, float16 may not do.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.memory_reads import written_float
from dspark_compiler.schedules.cuda.threads import WARP, address, device, launch, registers, shared
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

PART = 16  # columns of one sum of squares
_THREADS = 256


def late_norm_parts(depth: int) -> int:
    """Sums of squares of a row of ``depth`` elements."""
    return -(-depth // PART)


def late_norm_input(name: str, rows: int, depth: int, dtype: str) -> tvm.tirx.PrimFunc:
    """What a linear kernel with a late norm takes, from x alone.

    Arguments: x float32 [M, K], norm weight float32 [K], out product ``dtype`` [M, K], out squares [M, K/16].
    """

    def body(x: Buffer, weight: Buffer, product: Buffer, squares: Buffer) -> None:
        with launch((-(-depth // _THREADS), rows), _THREADS) as (block, row, thread):
            release_next()
            await_previous()
            column = block * _THREADS + thread
            with when(column < -(-depth // PART) * PART):
                value = registers(1)
                T.buffer_store(value, written_float(address(x, row, T.min(column, depth - 1))), [0])
                late_norm_output(value[0], weight[column], row, column, product, squares)

    args = [
        Arg("x", (rows, depth)),
        Arg("norm_weight", (depth,)),
        Arg("product", (rows, depth), dtype),
        Arg("squares", (rows, late_norm_parts(depth))),
    ]
    return kernel(name, args, body)


def late_norm_output(value: Expr, weight: Expr, row: Expr, column: Expr, product: Buffer, squares: Buffer) -> None:
    """Stores value * weight and, as 16 lanes in a row come with 16 columns of a row, their sum of squares."""
    depth = int(product.shape[1])
    inside = depth % PART == 0
    square = T.Bind(_half_warp_sum(value * value if inside else T.Select(column < depth, value * value, T.float32(0))))
    with when(column % PART == 0):
        T.buffer_store(squares, square, [row, column // PART])
    with when(column < depth):
        T.buffer_store(product, T.cast(value * weight, product.dtype), [row, column])


class LateScales:
    """1 / rms of each row, in shared memory; made of sums of squares asked for early and added up late."""

    def __init__(self, squares: Buffer, depth: int, epsilon: float, thread: Expr, warps: int) -> None:
        """Asks for the squares; after ``await_previous``."""
        self._rows, parts = (int(extent) for extent in squares.shape)
        self._depth, self._epsilon, self._thread, self._warps = depth, epsilon, thread, warps
        self._turns, self._each = -(-self._rows // warps), -(-parts // WARP)
        self._seen = registers(self._turns * self._each)
        self._scales = shared(self._rows)
        for turn in range(self._turns):
            row = T.min(turn * warps + thread // WARP, self._rows - 1)
            for i in range(self._each):
                part = i * WARP + thread % WARP
                place = turn * self._each + i
                T.buffer_store(self._seen, written_float(address(squares, row, T.min(part, parts - 1))), [place])
                if (i + 1) * WARP > parts:
                    T.buffer_store(self._seen, T.Select(part < parts, self._seen[place], T.float32(0)), [place])

    def add_up(self) -> None:
        """Each warp makes the scales of its rows; to be read behind a barrier."""
        for turn in range(self._turns):
            total = T.float32(0)
            for i in range(self._each):
                total = total + self._seen[turn * self._each + i]
            row = turn * self._warps + self._thread // WARP
            mean = reduce_float(total) * T.float32(1.0 / self._depth)
            with when(tvm.tirx.all(self._thread % WARP == 0, row < self._rows)):
                T.buffer_store(self._scales, T.rsqrt(mean + T.float32(self._epsilon)), [row])

    def __getitem__(self, row: Expr) -> Expr:
        return self._scales[row]


def _half_warp_sum(value: Expr) -> Expr:
    """The sum over these 16 lanes; the other 16 need not take part."""
    source = """
__device__ __forceinline__ float dspark_half_warp_sum(float v) {
  unsigned mask = 0xffffu << (threadIdx.x & 16);
  for (int step = 8; step; step >>= 1) v += __shfl_xor_sync(mask, v, step);
  return v;
}
"""
    return device("dspark_half_warp_sum", value, source=source, returns="float32")
