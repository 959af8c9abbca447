"""Stretches of a cache's slots in shared memory, filled by the copy engine while others are multiplied."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import async_copy
from dspark_compiler.schedules.cuda.tensor_maps import TensorMap
from dspark_compiler.schedules.cuda.threads import WARP, address
from dspark_compiler.schedules.tir import Buffer, Expr, when

STRETCH = 128  # slots
COLUMNS = 64  # of a row that lie together: 128 bytes, the width of the swizzle
_STAGES = 2
BARRIER_BYTES = 2 * _STAGES * 8


def ring_bytes(dim: int) -> int:
    """Shared memory for the stages of rows of ``dim`` elements, a multiple of 1 KB."""
    return _STAGES * STRETCH * dim * 2


@dataclass(frozen=True)
class StretchRing:
    """Stages from memory[at:], barriers that tell them full or empty from [barriers:]; steps count on over its turns.

    A stage holds its slots' columns 64 by 64, in the 128-byte swizzle.
    """

    memory: Buffer
    at: int
    barriers: int
    dim: int

    def init(self, threads: int, thread: Expr) -> None:
        """Sets up the barriers; the warps of so many threads will give a stage back."""
        with when(thread < _STAGES):
            async_copy.init_barrier(self._barrier(thread), 1)
            async_copy.init_barrier(self._barrier(thread + _STAGES), threads // WARP)

    def stage(self, step: Expr, at: Expr | int = 0) -> Expr:
        """Pointer to a byte of a stage."""
        return address(self.memory, self.at + step % _STAGES * (STRETCH * self.dim * 2) + at)

    def load(self, rows: TensorMap, step: Expr, first: Expr) -> None:
        """Fills a stage with rows from ``first`` on, as soon as it may be."""
        async_copy.wait_phase(self._barrier(step % _STAGES + _STAGES), 1 - step // _STAGES % 2)
        full = self._barrier(step % _STAGES)
        async_copy.arrive_expecting(full, STRETCH * self.dim * 2)
        for column in range(0, self.dim, COLUMNS):
            rows.copy(self.stage(step, column * STRETCH * 2), (T.int32(column), first), full)

    def wait(self, step: Expr) -> None:
        """Waits until a stage is filled."""
        async_copy.wait_phase(self._barrier(step % _STAGES), step // _STAGES % 2)

    def give_back(self, step: Expr, thread: Expr) -> None:
        """Tells that this warp is done with a stage."""
        with when(thread % WARP == 0):
            async_copy.arrive(self._barrier(step % _STAGES + _STAGES))

    def _barrier(self, number: Expr) -> Expr:
        return address(self.memory, self.barriers + number * 8)
