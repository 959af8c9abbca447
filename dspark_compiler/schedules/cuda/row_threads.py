"""Short rows, each held by a warp or by a block in registers, and their sums."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import WARP, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Buffer, Expr, vector, when, widest_vector

_WARP_DEPTH = 512  # elements a warp holds
_THREADS, _ROWS = 256, 4  # threads for a longer row; rows of a block of warps


@dataclass(frozen=True)
class RowThreads:
    """How rows of ``depth`` elements are spread: a thread has ``lanes`` at a time, all threads' next to each other."""

    rows: int
    depth: int

    @property
    def threads(self) -> int:
        """Threads of a row."""
        return WARP if self.depth <= _WARP_DEPTH else _THREADS

    @property
    def lanes(self) -> int:
        """Elements of one access."""
        return widest_vector(self.depth, 4)

    @property
    def steps(self) -> int:
        """Accesses of a thread to a row."""
        return -(-self.depth // (self.threads * self.lanes))

    @contextmanager
    def launch(self) -> Iterator[tuple[Expr, Expr]]:
        """One launch for all rows; yields the row and the thread's number among its threads."""
        together = _ROWS if self.threads == WARP else 1
        with launch((-(-self.rows // together),), self.threads * together) as (block, thread):
            row = T.Bind(block * together + thread // self.threads)
            # A warp or a block as a whole goes without a row.
            with when(row < self.rows):
                yield row, T.Bind(thread % self.threads)

    def load(self, thread: Expr, value: Callable[[Expr], Expr]) -> Buffer:
        """A thread's share of value(0), … as float32, 0 behind the last."""
        held = registers(self.steps * self.lanes)
        for step in range(self.steps):
            first = T.Bind((step * self.threads + thread) * self.lanes)
            inside = first < self.depth
            for lane in range(self.lanes):
                T.buffer_store(held, T.float32(0.0), [step * self.lanes + lane])
            with when(inside), vector(self.lanes) as lane:
                T.buffer_store(held, T.cast(value(first + lane), "float32"), [step * self.lanes + lane])
        return held

    def store(self, thread: Expr, held: Buffer, put: Callable[[Expr, Expr], None]) -> None:
        """Calls put with each element of ``held`` and its index, in vector loops."""
        for step in range(self.steps):
            first = T.Bind((step * self.threads + thread) * self.lanes)
            with when(first < self.depth), vector(self.lanes) as lane:
                put(held[step * self.lanes + lane], first + lane)

    def total(self, thread: Expr, held: Buffer, term: Callable[[Expr], Expr]) -> Expr:
        """The sum over the row of term(element), elements behind the last one left out, for all its threads."""
        sums = registers(1)
        T.buffer_store(sums, T.float32(0.0), [0])
        for step in range(self.steps):
            first = (step * self.threads + thread) * self.lanes
            with when(first < self.depth):
                for lane in range(self.lanes):
                    T.buffer_store(sums, sums[0] + term(held[step * self.lanes + lane]), [0])
        part = reduce_float(sums[0])
        if self.threads == WARP:
            return part
        parts = shared(self.threads // WARP)
        barrier()  # an earlier sum's parts may lie in the same place
        with when(thread % WARP == 0):
            T.buffer_store(parts, part, [thread // WARP])
        barrier()
        whole = registers(1)
        T.buffer_store(whole, parts[0], [0])
        for warp in range(1, self.threads // WARP):
            T.buffer_store(whole, whole[0] + parts[warp], [0])
        return T.Bind(whole[0])
