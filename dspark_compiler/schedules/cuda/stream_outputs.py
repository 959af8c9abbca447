"""The values of y that a block of a streaming linear kernel stores, and what it needs for them, asked for early.

A load that stands where the sums are made costs its whole way, from memory for a weight, at the end of every block.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS
from dspark_compiler.schedules.cuda.stream_inputs import GROUP
from dspark_compiler.schedules.cuda.threads import registers
from dspark_compiler.schedules.tir import Buffer, Expr, when

# (which of the thread's values, stripe of the block's, row, place in the stripe)
Each = Callable[[int, Expr, Expr, Expr], None]


@dataclass(frozen=True)
class Outputs:
    """``stripes`` of 16 features of all rows; 16 lanes in a row have those of one stripe and row."""

    rows: int
    stripes: int
    thread: Expr
    threads: int

    @property
    def groups(self) -> int:
        """Rows by eights."""
        return -(-self.rows // GROUP)

    def live(self, group: int) -> int:
        """Rows of a group."""
        return min(self.rows - group * GROUP, GROUP)

    def of_group(self, group: int, each: Each) -> None:
        """Emits each(…) for all values of this thread's in a group of rows."""
        live = self.live(group)
        values = self.stripes * live * TILE_ROWS
        for turn, start in enumerate(range(0, values, self.threads)):
            index = start + self.thread
            with when(index < values):
                stripe, row, place = index // (live * TILE_ROWS), index // TILE_ROWS % live, index % TILE_ROWS
                each(group * self._turns + turn, stripe, group * GROUP + row, place)

    def early(self, load: Callable[[Expr, Expr], Expr]) -> Buffer:
        """load(row, feature of the block's) of each of this thread's values, asked for here."""
        kept = registers(self.groups * self._turns)

        def ask(number: int, stripe: Expr, row: Expr, place: Expr) -> None:
            T.buffer_store(kept, load(row, stripe * TILE_ROWS + place), [number])

        for group in range(self.groups):
            self.of_group(group, ask)
        return kept

    @property
    def _turns(self) -> int:
        """Values of a thread's in a group, at most."""
        return -(-self.stripes * self.live(0) * TILE_ROWS // self.threads)
