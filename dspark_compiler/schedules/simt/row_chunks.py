"""Long rows, such as logits: cut into chunks, one a work group, whose parts a later launch puts together."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.tir import Buffer, Expr, when

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
        for turn in range(_EACH):
            i = self._place(chunk, turn, thread)
            with when(i < self.extent):
                emit(i)

    def read(self, chunk: Expr, thread: Expr, value: Callable[[Expr], Expr], dtype: str = "float32") -> Buffer:
        """value(i) of all elements of a chunk that are a thread's, read at once; past the row's end that of its last.

        In the order of ``places``.
        """
        found = registers(_EACH, dtype)
        for turn in range(_EACH):
            i = T.Bind(T.min(self._place(chunk, turn, thread), self.extent - 1))
            T.buffer_store(found, value(i), [turn])
        return found

    def read_all(self, chunk: Expr, thread: Expr, row: Buffer, at: tuple[Expr, ...]) -> Buffer:
        """The same of row[at]."""
        return self.read(chunk, thread, lambda i: row[(*at, i)], row.dtype)

    def await_all(self, chunk: Expr, thread: Expr, row: Buffer, at: tuple[Expr, ...]) -> Buffer:
        """The same as soon as they are there (awaited.py)."""
        found, asks = registers(_EACH), []
        for turn in range(_EACH):
            i = T.Bind(T.min(self._place(chunk, turn, thread), self.extent - 1))
            asks.append(Ask(found, (turn,), row, (*at, i)))
        await_numbers(asks)
        return found

    def places(self, chunk: Expr, thread: Expr) -> list[tuple[int, Expr, Expr]]:
        """Number, index and whether there is one of each element of a chunk that is a thread's."""
        places = [(turn, self._place(chunk, turn, thread)) for turn in range(_EACH)]
        return [(turn, i, i < self.extent) for turn, i in places]

    def _place(self, chunk: Expr, turn: int, thread: Expr) -> Expr:
        return T.Bind(chunk * self.size + turn * THREADS + thread)

    def each_of_row(self, thread: Expr, emit: Callable[[Expr], None]) -> None:
        """The same for the whole row, the same elements to the same thread each time."""
        with T.serial(0, -(-self.extent // THREADS)) as turn:
            i = T.Bind(turn * THREADS + thread)
            with when(i < self.extent):
                emit(i)
