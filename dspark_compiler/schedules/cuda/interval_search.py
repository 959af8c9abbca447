"""A search that narrows an interval of integers down, in step in all threads of a kernel."""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.tir import Expr, when


class Search:
    """Emits a search for the highest int32 of which something holds: it does of ``low``, and not of ``high``."""

    def __init__(self, low: Expr, high: Expr) -> None:
        self._low, self._high = variable(low, "int32"), variable(high, "int32")
        self._searching = variable(T.int32(1), "int32")

    @property
    def low(self) -> Expr:
        """The highest number so far of which it holds."""
        return self._low[0]

    @property
    def high(self) -> Expr:
        """The lowest number so far of which it does not hold."""
        return self._high[0]

    @property
    def middle(self) -> Expr:
        """What halves the interval."""
        low, high = (T.cast(end, "uint32") for end in (self.low, self.high))
        return T.cast(low + ((high - low) >> T.uint32(1)), "int32")

    @contextmanager
    def steps(self, most: int) -> Iterator[Expr]:
        """A loop until the interval has no middle or ``stop``; at most ``most`` steps."""
        with T.serial(0, most) as step, when(T.And(self._searching[0] == 1, self.high != self.low + 1)):
            yield step

    def between(self, candidate: Expr) -> Expr:
        """A number as near to ``candidate`` as the interval allows."""
        return T.Bind(T.max(T.min(candidate, self.high - 1), self.low + 1))

    def narrow(self, candidate: Expr, holds: Expr) -> None:
        """Makes ``candidate`` an end of the interval."""
        with T.If(holds):
            with T.Then():
                T.buffer_store(self._low, candidate, [0])
            with T.Else():
                T.buffer_store(self._high, candidate, [0])

    def stop(self) -> None:
        """Ends the loop."""
        T.buffer_store(self._searching, T.int32(0), [0])
