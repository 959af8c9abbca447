"""How a long row is spread over the blocks of a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dspark_compiler.schedules.cuda.clusters import MOST_BLOCKS, launch_clusters
from dspark_compiler.schedules.cuda.threads import WARP
from dspark_compiler.schedules.tir import Expr

_THREADS = 512
_FEW = 8  # elements a thread has at least before a row gets more blocks


@dataclass(frozen=True)
class RowCluster:
    """Sizes for a row of ``extent`` elements."""

    extent: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return min(_THREADS, -(-self.extent // WARP) * WARP)

    @property
    def blocks(self) -> int:
        """Blocks of a cluster."""
        # Never one: a block that was not launched in a cluster may not send, not even to itself.
        return next(n for n in (2, 4, MOST_BLOCKS) if n == MOST_BLOCKS or self.extent <= n * _FEW * self.threads)

    @property
    def each(self) -> int:
        """Elements of a thread."""
        return -(-self.extent // (self.threads * self.blocks))

    @property
    def warps(self) -> int:
        """Warps of a cluster."""
        return self.blocks * self.threads // WARP

    @contextmanager
    def launch(self, rows: int) -> Iterator[tuple[Expr, Expr, Expr]]:
        """One cluster a row; yields the row, the block's place in its cluster, and the thread's in its block."""
        with launch_clusters(self.blocks, (rows,), self.threads) as (block, row, thread):
            yield row, block, thread
