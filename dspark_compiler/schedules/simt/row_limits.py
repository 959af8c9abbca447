"""Top-k, top-p and the least weight of a long row: what a single work group has to know all of it for.

Nothing is sorted: the k-th highest score and the last weight of the nucleus are found digit by digit, since floats
order as their bits do. Sums are in fixed point.
"""

from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.fixed_point import fixed, share
from dspark_compiler.schedules.simt.group_counts import group_counts, group_sums_int64, held
from dspark_compiler.schedules.simt.rank_search import float_of, highest, rank_of
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.tir import Buffer, Expr

WEIGHT_BITS = 40  # fractional, of sums: 2^18 weights, none above 1, add up within 58 bits
LOWEST = -3.4028234663852886e38
NOWHERE = 2**31 - 1
_INDEX_BITS = 20

Holds = Callable[[Expr, Expr], Sequence[Expr]]  # conditions on a value and its index


class RowLimits:
    """Emits the search; ``values`` at ``at`` is a row of memory, each thread of which reads only what it wrote.

    After ``find`` that holds weights exp(score - highest score), 0 below the k-th highest.

    Attributes:
        bound: the least score that top-k leaves.
        last: the least weight that top-p leaves, ``cutoff`` the index before which its equals stay.
    """

    def __init__(
        self, chunks: RowChunks, of: dict[str, Buffer], values: Buffer, at: tuple[Expr, ...], thread: Expr
    ) -> None:
        """``of`` has temperature, top_k, top_p and min_p by name, which sequence at[0] goes by."""
        self._chunks, self._values, self._at, self._thread = chunks, values, at, thread
        self._temperature, self._top_k, self._top_p, self._min_p = (
            T.Bind(of[name][at[0]]) for name in ("temperature", "top_k", "top_p", "min_p")
        )

    def find(self, highest_logit: Expr, logit: Callable[[Expr], Expr]) -> None:
        """Searches the row of which logit(i) is element i."""
        self._each(lambda i: self._store(logit(i) / self._temperature, i))
        self.bound = self._kth_highest(self._top_k)
        peak = held(highest_logit / self._temperature, "float32")

        def weigh(i: Expr) -> None:
            score = self._value(i)
            self._store(T.Select(score < self.bound, T.float32(0.0), T.exp(score - peak)), i)

        self._each(weigh)
        self.last, self.cutoff = self._nucleus(self._top_p)

    def kept(self, i: Expr) -> Expr:
        """The weight of element ``i``, 0 if it does not stay; to those that may ask for it."""
        value = self._value(i)
        return T.Select(self._stays(value, i), value, T.float32(0.0))

    def each(self, emit: Callable[[Expr, Expr], None]) -> None:
        """Calls emit(kept(i), i) with each of a thread's elements."""
        self._each(lambda i: emit(self.kept(i), i))

    def total(self) -> Expr:
        """The sum of what stays, in fixed point."""
        return self._sums(lambda value, i: [self._stays(value, i)], 1)[0]

    def _stays(self, value: Expr, i: Expr) -> Expr:
        inside = T.Or(value > self.last, T.And(value == self.last, i < self.cutoff))
        return T.And(inside, value >= self._min_p)

    def _kth_highest(self, k: Expr) -> Expr:
        """The ``k``-th highest score; what lies below all scores where ``k`` is off."""
        limits = T.And(k > 0, k < self._chunks.extent)

        def hold(ranks: Sequence[Expr]) -> list[Expr]:
            def above(value: Expr, _: Expr) -> list[Expr]:
                rank = rank_of(value)
                return [rank >= least for least in ranks]

            return [count >= k for count in self._counts(above, len(ranks))]

        return held(T.Select(limits, float_of(highest(32, 4, hold, limits)), T.float32(LOWEST)), "float32")

    def _nucleus(self, part: Expr) -> tuple[Expr, Expr]:
        """The last weight of the fewest highest ones that hold ``part`` of their sum, and where its equals end.

        All weights where ``part`` is off.
        """
        limits = part < T.float32(1.0)
        (total,) = self._sums(lambda value, _: [value > T.float32(0.0)], 1)
        wanted = held(T.max(share(T.Select(limits, part, T.float32(0.0)), total, up=True), T.int64(1)), "int64")

        def hold(candidates: Sequence[Expr]) -> list[Expr]:
            def above(value: Expr, _: Expr) -> list[Expr]:
                # Of numbers that are not negative, the bits are the rank.
                bits = held(T.reinterpret("uint32", value), "uint32")
                return [bits > candidate for candidate in candidates]

            return [inside >= wanted for inside in self._sums(above, len(candidates))]

        # The highest weight above which there is as much as wanted; no weight is above 1, which has 30 bits.
        outside = highest(30, 3, hold, limits)
        last = held(T.Select(limits, T.reinterpret("float32", outside + T.uint32(1)), T.float32(0.0)), "float32")
        (above_last,) = self._sums(lambda value, _: [value > last], 1)
        (equals,) = self._counts(lambda value, _: [value == last], 1)
        each = held(T.max(fixed(last, WEIGHT_BITS), T.int64(1)), "int64")
        number = T.truncdiv(wanted - above_last + each - T.int64(1), each)
        needed = held(T.cast(T.min(number, T.int64(NOWHERE)), "int32"), "int32")
        too_many = T.And(limits, equals > needed)

        def few(ends: Sequence[Expr]) -> list[Expr]:
            def early(value: Expr, i: Expr) -> list[Expr]:
                return [T.And(value == last, T.cast(i, "uint32") < end) for end in ends]

            return [count <= needed for count in self._counts(early, len(ends))]

        end = T.cast(highest(_INDEX_BITS, 4, few, too_many), "int32")
        return last, held(T.Select(too_many, end, T.int32(NOWHERE)), "int32")

    def _counts(self, holds: Holds, number: int) -> list[Expr]:
        """How many of the row's values each of ``number`` conditions is true of."""
        counts = registers(number, "int32")
        for n in range(number):
            T.buffer_store(counts, T.int32(0), [n])

        def look(i: Expr) -> None:
            for n, condition in enumerate(holds(self._value(i), i)):
                T.buffer_store(counts, counts[n] + T.Select(condition, T.int32(1), T.int32(0)), [n])

        self._each(look)
        return group_counts([counts[n] for n in range(number)], self._thread, THREADS)

    def _sums(self, holds: Holds, number: int) -> list[Expr]:
        """The sums of those weights, in fixed point."""
        sums = registers(number, "int64")
        for n in range(number):
            T.buffer_store(sums, T.int64(0), [n])

        def look(i: Expr) -> None:
            value = self._value(i)
            amount = held(fixed(value, WEIGHT_BITS), "int64")
            for n, condition in enumerate(holds(value, i)):
                T.buffer_store(sums, sums[n] + T.Select(condition, amount, T.int64(0)), [n])

        self._each(look)
        return group_sums_int64([sums[n] for n in range(number)], self._thread, THREADS)

    def _each(self, emit: Callable[[Expr], None]) -> None:
        self._chunks.each_of_row(self._thread, emit)

    def _value(self, i: Expr) -> Expr:
        return T.Bind(self._values[(*self._at, i)])

    def _store(self, value: Expr, i: Expr) -> None:
        T.buffer_store(self._values, value, [*self._at, i])
