"""Logits to the distribution tokens are drawn from.

Nothing is sorted: the k-th highest score and the last weight of the nucleus are found bit by bit, since non-negative
floats order as their bits do; a pass over the vocabulary says whether one more bit stays. So the cost depends neither
on k nor on how flat the distribution is.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.row_sweep import COUNT, FIRST, MAXIMUM, SUM, RowSweep, float64, variable
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_LOWEST_RANK, _SIGN_CLEAR = -(2**31), 2**31 - 1
_LOWEST = -3.4028234663852886e38


@made_once
def token_probs(name: str, batch: int, rows: int, vocab: int, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """The distributions of [batch, rows] tokens; semantics are the operator's.

    Arguments: logits [B,R,V], temperature [B], top_k int32 [B], top_p [B], min_p [B], out [B,R,V].
    """

    def body(logits: Buffer, temperature: Buffer, top_k: Buffer, top_p: Buffer, min_p: Buffer, out: Buffer) -> None:
        loop = T.parallel if batch * rows > 1 else T.serial
        with loop(0, batch * rows) as task:
            seq, r = T.Bind(task // rows), T.Bind(task % rows)
            row = _Row(RowSweep(vocab, isa), logits, out, (seq, r))
            with T.If(temperature[seq] == T.float32(0.0)):
                with T.Then():
                    row.greedy()
                with T.Else():
                    row.scores(temperature[seq])
                    row.weigh(row.kth_highest(top_k[seq]))
                    with when(top_p[seq] < T.float32(1.0)):
                        row.keep_nucleus(float64(top_p[seq]))
                    with when(min_p[seq] > T.float32(0.0)):
                        row.drop_below(min_p[seq])
                    row.normalize()

    logits = (batch, rows, vocab)
    args = [
        Arg("logits", logits),
        Arg("temperature", (batch,)),
        Arg("top_k", (batch,), "int32"),
        Arg("top_p", (batch,)),
        Arg("min_p", (batch,)),
        Arg("out", logits),
    ]
    return kernel(name, args, body)


class _Row:
    """Emits the steps for one row; between them ``out`` holds scores, then weights, then probabilities."""

    def __init__(self, sweep: RowSweep, logits: Buffer, out: Buffer, at: tuple[Expr, Expr]) -> None:
        self._sweep, self._logits, self._out, self._at = sweep, logits, out, at
        self._highest = sweep.reduce(MAXIMUM, lambda i: logits[*at, i])

    def greedy(self) -> None:
        """1 for the first of the highest logits, 0 for all others."""
        never = T.int32(FIRST.start)
        first = self._sweep.reduce(
            FIRST, lambda i: T.Select(self._logits[*self._at, i] == self._highest, T.cast(i, "int32"), never)
        )
        self._sweep.each(lambda i: self._store(T.float32(0.0), i))
        with when(first < self._sweep.extent):
            self._store(T.float32(1.0), first)

    def scores(self, temperature: Expr) -> None:
        """Logits over the temperature; the order they have after rounding is the one that counts."""
        self._temperature = T.Bind(temperature)
        self._sweep.each(lambda i: self._store(self._logits[*self._at, i] / self._temperature, i))

    def kth_highest(self, k: Expr) -> Expr:
        """The ``k``-th highest score; what lies below all scores where ``k`` is off."""
        bound = variable(T.float32(_LOWEST), "float32")
        with when(T.And(k > 0, k < self._sweep.extent)):
            rank = variable(T.int32(_LOWEST_RANK), "int32")
            with T.serial(0, 32) as step:
                # Seen as unsigned numbers from the lowest rank up, this sets one more bit.
                candidate = T.Bind(T.bitwise_xor(rank[0], T.int32(1) << (T.int32(31) - step)))
                least = T.Bind(_ranked(candidate))
                with when(self._count(lambda value: value >= least) >= k):
                    T.buffer_store(rank, candidate, [0])
            T.buffer_store(bound, _ranked(rank[0]), [0])
        return T.Bind(bound[0])

    def weigh(self, bound: Expr) -> None:
        """Scores of at least ``bound`` become weights, the highest 1; the others 0."""
        highest = T.Bind(self._highest / self._temperature)

        def emit(i: Expr) -> None:
            weight = vector_math.exp(self._value(i) - highest)
            self._store(T.Select(self._value(i) < bound, T.float32(0.0), weight), i)

        self._sweep.each(emit)

    def keep_nucleus(self, part: Expr) -> None:
        """Zeroes all but the fewest highest weights that hold ``part`` of their sum, the first ones among equals."""
        wanted = T.Bind(part * self._above(T.float32(-1.0)))
        # The highest weight above which there is as much as wanted: the last one that stays comes next.
        bits = variable(T.int32(0), "int32")
        with T.serial(0, 30) as step:  # no weight is above 1, whose highest bit is number 29
            candidate = T.Bind(bits[0] + (T.int32(1) << (T.int32(29) - step)))
            with when(self._above(T.reinterpret("float32", candidate)) >= wanted):
                T.buffer_store(bits, candidate, [0])
        last = T.Bind(T.reinterpret("float32", bits[0] + 1))
        held = variable(self._above(last), "float64")
        equals = self._count(lambda value: value == last)
        self.drop_below(last)
        too_many = held[0] + float64(equals - 1) * float64(last) >= wanted
        with when(too_many), T.serial(0, self._sweep.extent) as i, when(self._value(i) == last):
            with when(held[0] >= wanted):
                self._store(T.float32(0.0), i)
            T.buffer_store(held, held[0] + float64(last), [0])

    def drop_below(self, least: Expr) -> None:
        """Zeroes the weights below ``least``."""
        least = T.Bind(least)
        self._sweep.each(lambda i: self._store(T.Select(self._value(i) < least, T.float32(0.0), self._value(i)), i))

    def normalize(self) -> None:
        """Weights over their sum."""
        total = T.Bind(T.cast(self._above(T.float32(-1.0)), "float32"))
        self._sweep.each(lambda i: self._store(self._value(i) / total, i))

    def _above(self, bound: Expr) -> Expr:
        """The sum of the weights above ``bound``."""
        return self._sweep.reduce(
            SUM, lambda i: float64(T.Select(self._value(i) > bound, self._value(i), T.float32(0.0)))
        )

    def _count(self, holds: Callable[[Expr], Expr]) -> Expr:
        """How many of the row's values ``holds`` is true of."""
        return self._sweep.reduce(COUNT, lambda i: T.Select(holds(self._value(i)), T.int32(1), T.int32(0)))

    def _value(self, i: Expr) -> Expr:
        return self._out[*self._at, i]

    def _store(self, value: Expr, i: Expr) -> None:
        T.buffer_store(self._out, value, [*self._at, i])


def _ranked(rank: Expr) -> Expr:
    """The float whose place in the order of all floats is ``rank``; below minus infinity and above infinity NaN."""
    # Negative floats order by falling magnitude.
    return T.reinterpret("float32", T.bitwise_xor(rank, T.bitwise_and(rank >> T.int32(31), T.int32(_SIGN_CLEAR))))
