"""Long rows, such as logits: cut into chunks, one a work group, whose parts a later launch puts together."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Expr, when

THREADS = 256
_EACH = 16  # elements of a chunk that are a thread's


@dataclass(frozen=True)
class RowChunks:
    """Sizes for a row of ``extent`` elements."""

    extent: int

    @property
    def size(self) -> int:
        """Elements of a chunk; the last one may have fewer."""
        return THREADS * _EACH

    @property
    def count(self) -> int:
        """Chunks of a row."""
        return -(-self.extent // self.size)

    def each(self, chunk: Expr, thread: Expr, emit: Callable[[Expr], None]) -> None:
        """Calls emit with the index of every element of a chunk that is a thread's, neighbours in neighbours."""
        with T.serial(0, _EACH) as turn:
            i = T.Bind(chunk * self.size + turn * THREADS + thread)
            with when(i < self.extent):
                emit(i)

    def each_of_row(self, thread: Expr, emit: Callable[[Expr], None]) -> None:
        """The same for the whole row, the same elements to the same thread each time."""
        with T.serial(0, -(-self.extent // THREADS)) as turn:
            i = T.Bind(turn * THREADS + thread)
            with when(i < self.extent):
                emit(i)
