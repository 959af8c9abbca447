"""Where a streamed product finds the rows of x, and the norm's weight: in memory, or on their way there.

A row that is awaited is brought after the first of the weight has been asked for. It is kept on the chip, where it
need not come from the second-level cache once more, or if it is too long for that only seen to be there.
"""

from typing import Protocol

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.awaited import Ask, await_numbers
from dspark_compiler.schedules.simt.eighths import EIGHTHS, UNIT, rounded
from dspark_compiler.schedules.simt.stored import load, widen
from dspark_compiler.schedules.simt.threads import barrier, registers, shared
from dspark_compiler.schedules.simt.weights import WeightForm
from dspark_compiler.schedules.tir import Buffer, Expr, when

_MOST_KEPT = 36 << 10  # bytes of a row, and of the norm's weight, that are kept on the chip
_AT_ONCE = 8  # numbers that a thread awaits together
_FLOAT_BYTES = 4


class StreamInputs(Protocol):
    """Rows of x, and the norm's weight."""

    def bring(self, thread: Expr) -> None:
        """What comes before the first read, all threads together."""

    def x(self, target: Buffer, m: int, column: Expr) -> None:
        """Target = numbers column.. of row m of the launch's; zeros past the row's end."""

    def norm(self, target: Buffer, column: Expr) -> None:
        """The same of the norm's weight."""


class StoredInputs:
    """See StreamInputs: what is in memory before the launch begins; ``first`` is its first row."""

    def __init__(self, work: LinearWorkload, form: WeightForm, of: dict[str, Buffer], first: int) -> None:
        self._depth, self._form, self._of, self._first = work.depth, form, of, first

    def bring(self, thread: Expr) -> None:
        """See StreamInputs."""

    def x(self, target: Buffer, m: int, column: Expr) -> None:
        """See StreamInputs."""
        x = self._of["x"]
        self._load(target, x, (self._first + m,), column)
        if x.dtype == EIGHTHS:
            for e in range(self._form.piece):
                T.buffer_store(target, target[e] * T.float32(UNIT), [e])

    def norm(self, target: Buffer, column: Expr) -> None:
        """See StreamInputs."""
        self._load(target, self._of["norm"], (), column)

    def _load(self, target: Buffer, source: Buffer, outer: tuple[Expr, ...], k: Expr) -> None:
        depth, each = self._depth, self._form.piece
        if depth % each:
            for e in range(each):
                number = widen(source[(*outer, T.min(k + e, depth - 1))], source.dtype)
                inside = T.if_then_else(k + e < depth, number, T.float32(0.0))
                T.buffer_store(target, inside, [e])
            return
        load(target, 0, source, (*outer, k if self._form.padded == depth else T.min(k, depth - each)), each)
        if self._form.padded != depth:
            for e in range(each):
                T.buffer_store(target, T.Select(k < depth, target[e], T.float32(0.0)), [e])


class RoundedInputs:
    """See StreamInputs: those of ``inputs``, x rounded as eighths are, ``piece`` numbers at a time."""

    def __init__(self, inputs: StreamInputs, piece: int) -> None:
        self._inputs, self._piece = inputs, piece

    def bring(self, thread: Expr) -> None:
        """See StreamInputs."""
        self._inputs.bring(thread)

    def x(self, target: Buffer, m: int, column: Expr) -> None:
        """See StreamInputs."""
        self._inputs.x(target, m, column)
        for e in range(self._piece):
            T.buffer_store(target, rounded(target[e]), [e])

    def norm(self, target: Buffer, column: Expr) -> None:
        """See StreamInputs."""
        self._inputs.norm(target, column)


class SeenInputs(StoredInputs):
    """See StreamInputs: one row that is read from memory once all of it has been seen there."""

    def __init__(self, work: LinearWorkload, form: WeightForm, of: dict[str, Buffer], first: int, threads: int) -> None:
        super().__init__(work, form, of, first)
        self._threads = threads

    def bring(self, thread: Expr) -> None:
        """See StreamInputs."""
        at_once = min(_AT_ONCE, -(-self._depth // self._threads))
        with T.serial(0, -(-self._depth // (at_once * self._threads))) as turn:
            first = T.Bind(turn * at_once * self._threads + thread)
            columns = [T.Bind(T.min(first + i * self._threads, self._depth - 1)) for i in range(at_once)]
            seen, x = registers(at_once), self._of["x"]
            await_numbers([Ask(seen, (i,), x, (self._first, columns[i])) for i in range(at_once)])
        barrier()


class KeptInputs:
    """See StreamInputs: one row, kept in shared memory. Made at the top of a kernel."""

    def __init__(self, work: LinearWorkload, form: WeightForm, of: dict[str, Buffer], first: int, threads: int) -> None:
        self._depth, self._form, self._of, self._first, self._threads = work.depth, form, of, first, threads
        self._x = shared(form.padded)
        self._norm = shared(form.padded) if "norm" in of else None

    @staticmethod
    def can_keep(form: WeightForm, *, normed: bool) -> bool:
        """Whether there is room for a row."""
        return form.padded * _FLOAT_BYTES * (2 if normed else 1) <= _MOST_KEPT

    def bring(self, thread: Expr) -> None:
        """See StreamInputs."""
        turns = -(-self._form.padded // self._threads)
        at = [T.Bind(turn * self._threads + thread) for turn in range(turns)]
        if self._norm is not None:
            self._put(self._norm, at, self._asked(self._of["norm"], at))
        x = registers(turns)
        inside = [T.min(place, self._depth - 1) for place in at]
        await_numbers([Ask(x, (turn,), self._of["x"], (self._first, inside[turn])) for turn in range(turns)])
        self._put(self._x, at, x)
        barrier()

    def x(self, target: Buffer, m: int, column: Expr) -> None:
        """See StreamInputs."""
        load(target, 0, self._x, (column,), self._form.piece)

    def norm(self, target: Buffer, column: Expr) -> None:
        """See StreamInputs."""
        load(target, 0, self._norm, (column,), self._form.piece)

    def _asked(self, source: Buffer, at: list[Expr]) -> Buffer:
        found = registers(len(at))
        for turn, place in enumerate(at):
            T.buffer_store(found, source[T.min(place, self._depth - 1)], [turn])
        return found

    def _put(self, target: Buffer, at: list[Expr], values: Buffer) -> None:
        """All of a row's numbers, zeros behind them."""
        for turn, place in enumerate(at):
            with when(place < self._form.padded):
                T.buffer_store(target, T.Select(place < self._depth, values[turn], T.float32(0.0)), [place])
