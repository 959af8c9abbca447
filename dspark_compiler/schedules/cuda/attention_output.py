"""The end of attention: sinks, division by the total, the output's type."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_rows import Problem
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN, LOG2_E
from dspark_compiler.schedules.cuda.floats import fused, power_of_two
from dspark_compiler.schedules.cuda.memory import store_pair, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import address
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Expr


def rate_of(problem: Problem) -> float:
    """What a score is multiplied with to be an exponent of two; the softcap's scores are scaled already."""
    return LOG2_E if problem.scoring.softcap else problem.scoring.scale * LOG2_E


def weight_of(maximum: Expr, peak: Expr, rate: Expr) -> Expr:
    """What sums relative to ``maximum`` count relative to ``peak``; 0 for those of nothing."""
    known = T.Select(peak == T.float32(HIDDEN), T.float32(0.0), peak)
    return T.Bind(power_of_two((maximum - known) * rate))


class OutputRow:
    """One query row of the output: where it goes, and its sink."""

    def __init__(self, problem: Problem, tensors: Tensors, row: Expr, head: Expr, m: Expr) -> None:
        self._problem, self._out, self._row = problem, tensors["out"], row
        group = problem.shape.group
        self._token, self._head = T.Bind(m // group), T.Bind(head * group + m % group)
        self._sinks = tensors.get("sinks")

    def peak(self, maximum: Expr) -> Expr:
        """The maximum, of the sink, too."""
        if self._sinks is None:
            return maximum
        return T.Bind(T.max(maximum, self._sink()))

    def inverse(self, total: Expr, weight: Expr, peak: Expr) -> Expr:
        """What to multiply sums with: total has ``weight``, the sink its own; 0 for a row that saw nothing."""
        rate = T.float32(rate_of(self._problem))
        sink = T.float32(0.0) if self._sinks is None else weight_of(self._sink(), peak, rate)
        everything = T.Bind(fused(total, weight, sink))
        return T.Bind(T.Select(everything > T.float32(0.0), T.float32(1.0) / everything, T.float32(0.0)))

    def store(self, d: Expr, low: Expr, high: Expr) -> None:
        """Stores elements d and d + 1."""
        target = address(self._out, self._row, self._token, self._head, d)
        if self._problem.out_dtype == "float32":
            store_pair(target, low, high)
        else:
            store_word(target, pack_pair(low, high, self._problem.out_dtype))

    def _sink(self) -> Expr:
        assert self._sinks is not None
        return T.Bind(self._sinks[self._head] * T.float32(LOG2_E / rate_of(self._problem)))
