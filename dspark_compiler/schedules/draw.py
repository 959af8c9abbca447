"""Drawing a token from weights: sums of blocks as vectors, then a walk through the block the number falls into."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.row_sweep import SUM, RowSweep, float64, variable
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, when

_BLOCK = 512  # weights; the walk goes through one block, the sums through as many as there are


def draw(name: str, batch: int, vocab: int, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """A token of each distribution; arguments probs [B,V], uniform [B], out int64 [B]."""

    def body(probs: Buffer, uniform: Buffer, out: Buffer) -> None:
        loop = T.parallel if batch > 1 else T.serial
        with loop(0, batch) as row:
            drawing = Drawing(vocab, isa, lambda i: probs[row, i])
            drawing.add_up()
            T.buffer_store(out, T.cast(drawing.token(uniform[row]), "int64"), [row])

    return kernel(name, [Arg("probs", (batch, vocab)), Arg("uniform", (batch,)), Arg("out", (batch,), "int64")], body)


class Drawing:
    """Emits a draw from weight(0), … weight(vocab - 1), none of them negative, in float64 sums."""

    def __init__(self, vocab: int, isa: VectorIsa, weight: Callable[[Expr], Expr]) -> None:
        self._sweep, self._weight = RowSweep(vocab, isa), weight
        self._whole, self._rest = divmod(vocab, _BLOCK)
        self._sums = local(self._whole + (self._rest > 0), "float64")
        self.total = local(1, "float64")

    def add_up(self) -> None:
        """Sums of the blocks, and of all: must come before ``token``, again if weights have changed."""
        T.buffer_store(self.total, T.float64(0.0), [0])
        with T.serial(0, self._whole) as block:
            self._add_block(block, _BLOCK)
        if self._rest:
            self._add_block(T.int32(self._whole), self._rest)

    def _add_block(self, block: Expr, extent: int) -> None:
        part = self._sweep.reduce_part(SUM, block * _BLOCK, extent, lambda i: float64(self._weight(i)))
        T.buffer_store(self._sums, part, [block])
        T.buffer_store(self.total, self.total[0] + part, [0])

    def token(self, uniform: Expr) -> Expr:
        """The first token up to which more than ``uniform`` of all weight lies; rounded past the end, the last one."""
        target = T.Bind(float64(uniform) * self.total[0])
        before, running = variable(T.float64(0.0), "float64"), local(1, "float64")
        found, last = variable(T.int32(-1), "int32"), variable(T.int32(0), "int32")
        blocks, none = self._whole + (self._rest > 0), T.float64(0.0)
        with T.serial(0, blocks) as block, when(T.And(found[0] < 0, self._sums[block] > none)):
            T.buffer_store(last, block, [0])
            after = T.Bind(before[0] + self._sums[block])
            with when(after > target):
                T.buffer_store(running, before[0], [0])
                self._walk(block, lambda i: self._step(running, target, found, i))
            T.buffer_store(before, after, [0])
        with when(found[0] < 0):
            self._walk(last[0], lambda i: T.buffer_store(found, i, [0]))
        return T.Bind(T.max(found[0], 0))

    def _step(self, running: Buffer, target: Expr, found: Buffer, i: Expr) -> None:
        T.buffer_store(running, running[0] + float64(self._weight(i)), [0])
        with when(T.And(found[0] < 0, running[0] > target)):
            T.buffer_store(found, i, [0])

    def _walk(self, block: Expr, emit: Callable[[Expr], None]) -> None:
        """Calls emit with the tokens of a block that have any weight, in order."""
        first = T.Bind(block * _BLOCK)
        with T.serial(0, T.min(self._sweep.extent - first, _BLOCK)) as step:
            i = T.Bind(first + step)
            with when(self._weight(i) > T.float32(0.0)):
                emit(i)
