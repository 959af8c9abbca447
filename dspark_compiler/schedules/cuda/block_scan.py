"""Numbers made of all threads of a block: sums, and counts of the threads before."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import WARP, barrier, device, shared
from dspark_compiler.schedules.cuda.warps import reduce_int32
from dspark_compiler.schedules.tir import Expr, when


class BlockScan:
    """Counts over a block of ``threads``, one number a warp in shared memory."""

    def __init__(self, thread: Expr, threads: int) -> None:
        self._lane, self._warp = T.Bind(thread % WARP), T.Bind(thread // WARP)
        self._warps = threads // WARP
        self._parts = shared(self._warps, "int32")

    def total(self, value: Expr) -> Expr:
        """The sum of each thread's int32 ``value``."""
        self._put(reduce_int32(value, "add"))
        return reduce_int32(self._part(self._lane < self._warps), "add")

    def before(self, condition: Expr) -> tuple[Expr, Expr]:
        """For how many threads before this one ``condition`` holds, and for how many in all."""
        source = """
__device__ __forceinline__ int dspark_lanes_before(bool condition, int lane) {
  return __popc(__ballot_sync(0xffffffffu, condition) & ((1u << lane) - 1));
}
"""
        condition = T.Bind(condition)
        lanes = T.Bind(device("dspark_lanes_before", condition, self._lane, source=source, returns="int32"))
        self._put(reduce_int32(T.cast(condition, "int32"), "add"))
        warps = reduce_int32(self._part(self._lane < self._warp), "add")
        return T.Bind(warps + lanes), reduce_int32(self._part(self._lane < self._warps), "add")

    def _put(self, part: Expr) -> None:
        barrier()  # the parts of the last call have been read
        with when(self._lane == 0):
            T.buffer_store(self._parts, part, [self._warp])
        barrier()

    def _part(self, mine: Expr) -> Expr:
        return T.if_then_else(mine, self._parts[T.min(self._lane, self._warps - 1)], T.int32(0))
