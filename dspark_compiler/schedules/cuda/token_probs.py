"""Logits to the distribution tokens are drawn from: a cluster a row, which it reads and writes once.

Nothing is sorted: the k-th highest score and the last weight of the nucleus are searched for among all floats, which
order as their bits do, until one element is left that could be it. Sums are integers, the same in any order.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import functions
from dspark_compiler.schedules.cuda.clusters import cluster_barrier
from dspark_compiler.schedules.cuda.draw import Drawing
from dspark_compiler.schedules.cuda.interval_search import Search
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.row_registers import RowRegisters, as_float32, flipped, ranked, variable
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_LOWEST_RANK, _LOWEST = 0x7FFFFF - 2**31, -3.4028234663852886e38  # the rank is minus infinity's
_BITS_OF_ONE = 0x3F800000
_LEAPS = 6


@made_once
def token_probs(name: str, batch: int, rows: int, vocab: int) -> tvm.tirx.PrimFunc:
    """The distributions of [batch, rows] tokens, of at most 2^18 each; semantics are the operator's.

    Arguments: logits [B,R,V], temperature [B], top_k int32 [B], top_p [B], min_p [B], out [B,R,V].
    """
    cluster = RowCluster(vocab)

    def body(logits: Buffer, temperature: Buffer, top_k: Buffer, top_p: Buffer, min_p: Buffer, out: Buffer) -> None:
        with cluster.launch(batch * rows) as (task, block, thread):
            seq, r = T.Bind(task // rows), T.Bind(task % rows)
            registers = RowRegisters(cluster, block, thread)
            registers.load(lambda i: logits[seq, r, i])
            _weigh(registers, seq, (temperature, top_k, top_p, min_p))
            registers.store(lambda value, i: T.buffer_store(out, value, [seq, r, i]))

    return kernel(name, [*_args(batch, rows, vocab), Arg("out", (batch, rows, vocab))], body)


def drawn_probs(name: str, batch: int, vocab: int, numbers: int) -> tvm.tirx.PrimFunc:
    """The distribution of one token a sequence, as ``token_probs`` makes it, and the token drawn from it (draw.py).

    Arguments: logits [B,1,V], temperature [B], top_k int32 [B], top_p [B], min_p [B], uniform [B, ``numbers``], the
    column of uniform to draw by int32 [1], out [B,1,V], token int64 [B].
    """
    cluster = RowCluster(vocab)

    def body(logits: Buffer, temperature: Buffer, top_k: Buffer, top_p: Buffer, min_p: Buffer, *rest: Buffer) -> None:
        uniform, column, out, token = rest
        with cluster.launch(batch) as (seq, block, thread):
            registers = RowRegisters(cluster, block, thread)
            registers.load(lambda i: logits[seq, 0, i])
            certain = _weigh(registers, seq, (temperature, top_k, top_p, min_p))
            registers.store(lambda value, i: T.buffer_store(out, value, [seq, 0, i]))
            with when(T.And(certain >= 0, T.And(block == 0, thread == 0))):
                T.buffer_store(token, T.cast(certain, "int64"), [seq])
            with when(certain < 0):
                cluster_barrier()  # all of the row is there
                drawing = Drawing(cluster, (block, thread), lambda i: out[seq, 0, i])
                drawing.add_up()
                drawing.token(T.Bind(uniform[seq, column[0]]), lambda drawn: T.buffer_store(token, drawn, [seq]))

    args = [
        *_args(batch, 1, vocab),
        Arg("uniform", (batch, numbers)),
        Arg("column", (1,), "int32"),
        Arg("out", (batch, 1, vocab)),
        Arg("token", (batch,), "int64"),
    ]
    return kernel(name, args, body)


def _args(batch: int, rows: int, vocab: int) -> list[Arg]:
    """What a distribution is made of."""
    control = (batch,)
    return [
        Arg("logits", (batch, rows, vocab)),
        Arg("temperature", control),
        Arg("top_k", control, "int32"),
        Arg("top_p", control),
        Arg("min_p", control),
    ]


def _weigh(registers: RowRegisters, seq: Expr, knobs: tuple[Buffer, Buffer, Buffer, Buffer]) -> Expr:
    """Logits in ``registers`` become probabilities; returns the token that has all of it, -1 if one is to be drawn."""
    temperature, top_k, top_p, min_p = knobs
    row = _Row(registers, T.Bind(temperature[seq]))
    certain = variable(T.int32(-1), "int32")
    with T.If(temperature[seq] == T.float32(0.0)):
        with T.Then():
            T.buffer_store(certain, row.greedy(), [0])
        with T.Else():
            row.scores()
            row.weigh(row.kth_highest(T.Bind(top_k[seq])))
            with when(top_p[seq] < T.float32(1.0)):
                row.keep_nucleus(T.cast(top_p[seq], "float64"))
            with when(min_p[seq] > T.float32(0.0)):
                row.drop_below(T.Bind(min_p[seq]))
            row.normalize()
    return T.Bind(certain[0])


class _Row:
    """Emits the steps for one row, whose registers hold logits, then scores, weights, and probabilities."""

    def __init__(self, row: RowRegisters, temperature: Expr) -> None:
        self._row, self._temperature = row, temperature
        self._highest = row.maximum()

    def greedy(self) -> Expr:
        """1 for the first of the highest logits, whose index it returns, 0 for all others."""
        first = self._row.first(lambda value: value == self._highest)
        self._row.change(lambda _, i: T.Select(i == first, T.float32(1.0), T.float32(0.0)))
        return first

    def scores(self) -> None:
        """Logits over the temperature; the order they have after rounding is the one that counts."""
        self._row.change(lambda value, _: value / self._temperature)

    def kth_highest(self, k: Expr) -> Expr:
        """A bound the ``k`` highest scores and the equals of the last reach; below all scores where ``k`` is off."""
        bound = variable(T.float32(_LOWEST), "float32")
        with when(T.And(k > 0, k < self._row.cluster.extent)):
            highest = T.Bind(self._highest / self._temperature)
            search = Search(T.int32(_LOWEST_RANK), flipped(T.reinterpret("int32", highest)) + 1)
            with search.steps(_LEAPS + 32) as step:
                # Tokens worth drawing are few powers of two below the highest; if not, all floats are left.
                leap = highest - T.cast(T.int32(2) << T.min(step, _LEAPS), "float32")
                leaps = T.And(search.low == _LOWEST_RANK, step < _LEAPS)
                candidate = search.between(T.Select(leaps, flipped(T.reinterpret("int32", leap)), search.middle))
                least = T.Bind(ranked(candidate))
                number = self._row.count(lambda value, _: value >= least)
                search.narrow(candidate, number >= k)
                with when(number == k):
                    search.stop()
            T.buffer_store(bound, ranked(search.low), [0])
        return T.Bind(bound[0])

    def weigh(self, bound: Expr) -> None:
        """Scores of at least ``bound`` become weights, the highest 1; the others 0."""
        highest = T.Bind(self._highest / self._temperature)
        zero = T.float32(0.0)
        self._row.change(lambda value, _: T.Select(value < bound, zero, functions.exp(value - highest)))

    def keep_nucleus(self, part: Expr) -> None:
        """Zeroes all but the fewest highest weights that hold ``part`` of their sum, the first ones among equals."""
        total, positive = self._row.above(T.float32(0.0))
        wanted = T.Bind(T.max(T.cast(T.ceil(part * T.cast(total, "float64")), "int64"), T.int64(1)))
        # The highest weight above which there is as much as wanted: the last one that stays comes next. Weights are
        # looked for by their bits. None is above 1; half of what is not wanted is more than all at most as high as
        # that over their number, where the rounding of sums does not matter.
        rest = (T.float64(1.0) - part) * T.cast(total, "float64") * T.float64(0.5)
        least = T.Bind(as_float32(T.cast(rest / T.cast(positive, "float64"), "int64")))
        low = T.Select(least < T.float32(2.0**-36), T.int32(0), T.reinterpret("int32", least))
        search = Search(low, T.int32(_BITS_OF_ONE))
        sums = variable(total, "int64"), variable(T.int64(0), "int64")
        numbers = variable(positive, "int32"), variable(T.int32(0), "int32")
        with search.steps(2 * 30) as step:
            # Every other time where a straight line between both ends says, which is near where sums are smooth.
            share = T.cast(sums[0][0] - wanted, "float64") / T.cast(sums[0][0] - sums[1][0], "float64")
            line = search.low + T.cast(T.cast(search.high - search.low, "float64") * share, "int32")
            candidate = search.between(T.Select(step % 2 == 1, line, search.middle))
            held, number = self._row.above(T.reinterpret("float32", candidate))
            enough = T.Bind(held >= wanted)
            search.narrow(candidate, enough)
            for end, here in enumerate((enough, T.Not(enough))):
                with when(here):
                    T.buffer_store(sums[end], held, [0])
                    T.buffer_store(numbers[end], number, [0])
            with when(numbers[0][0] - numbers[1][0] == 1):
                search.stop()
        last = T.Bind(T.reinterpret("float32", search.low + 1))
        with when(numbers[0][0] - numbers[1][0] > 1):
            self._cut_equals(last, wanted)
        self.drop_below(last)

    def _cut_equals(self, last: Expr, wanted: Expr) -> None:
        """Zeroes those weights equal to ``last`` that come once the nucleus holds what is ``wanted``."""
        held, number = self._row.above(last)
        with_equals, number_with = self._row.above(T.reinterpret("float32", T.reinterpret("int32", last) - 1))
        equals = T.Bind(T.cast(number_with - number, "int64"))
        one = T.Bind(T.truncdiv(with_equals - held, equals))
        needed = T.Bind(T.cast(T.truncdiv(wanted - held + one - 1, one), "int32"))
        with when(needed < number_with - number):
            # The place before which there are fewer than needed, and no later one.
            place = variable(T.int32(0), "int32")
            steps = self._row.cluster.extent.bit_length()
            with T.serial(0, steps) as step:
                candidate = T.Bind(place[0] + (T.int32(1) << (T.int32(steps - 1) - step)))
                before = self._row.count(lambda value, i: T.And(value == last, i < candidate))
                with when(before < needed):
                    T.buffer_store(place, candidate, [0])
            zero = T.float32(0.0)
            self._row.change(lambda value, i: T.Select(T.And(value == last, i > place[0]), zero, value))

    def drop_below(self, least: Expr) -> None:
        """Zeroes the weights below ``least``."""
        self._row.change(lambda value, _: T.Select(value < least, T.float32(0.0), value))

    def normalize(self) -> None:
        """Weights over their sum."""
        total, _ = self._row.above(T.float32(-1.0))
        divisor = T.Bind(as_float32(total))
        self._row.change(lambda value, _: value / divisor)
