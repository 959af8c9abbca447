"""Weights of logits, none above 1: what a row's settings make of each, and rules for which more than a logit counts."""

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import publish
from dspark_compiler.schedules.simt.fixed_point import fixed
from dspark_compiler.schedules.simt.group_counts import held
from dspark_compiler.schedules.simt.row_limits import LOWEST, WEIGHT_BITS
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut
from dspark_compiler.schedules.tir import Arg, Buffer, Expr

RULES = 4  # numbers of a row: a score, a weight, an index, and room
NO_RULES = tuple(T.float32(rule) for rule in (LOWEST, -1.0, 0.0, 0.0))
_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def knob_args(batch: int) -> list[Arg]:
    """Settings of rows."""
    return [Arg(knob, (batch,), "int32" if knob == "top_k" else "float32") for knob in _KNOBS]


class Knobs:
    """What a row's distribution goes by.

    Attributes:
        limited: whether it has rules for which all of it must be known.
        ruled: whether it has any for which more than a logit must be.
    """

    def __init__(self, of: dict[str, Buffer], row: Expr, vocab: int) -> None:
        self.temperature, self.min_p = (held(of[name][row], "float32") for name in ("temperature", "min_p"))
        top_k, top_p = held(of["top_k"][row], "int32"), held(of["top_p"][row], "float32")
        self.greedy = T.Bind(self.temperature == T.float32(0.0))
        limits = T.Or(T.And(top_k > 0, top_k < vocab), top_p < T.float32(1.0))
        self.limited = T.Bind(T.And(T.Not(self.greedy), limits))
        self.ruled = T.Bind(T.And(T.Not(self.greedy), T.Or(limits, self.min_p > T.float32(0.0))))

    def mass(self, stat: Buffer, highest: Expr, has_highest: Expr) -> Expr:
        """The sum of a chunk's weights by the row's highest logit, in fixed point."""
        one, peaks = T.float32(1.0), [held(value / self.temperature, "float32") for value in (stat[0], highest)]
        sampled = held(stat[2] * T.exp(peaks[0] - peaks[1]), "float32")
        return fixed(T.Select(self.greedy, T.Select(has_highest, one, T.float32(0.0)), sampled), WEIGHT_BITS)


class Weights:
    """Weights of a row's logits, none above 1; ``rules`` are as published."""

    def __init__(self, knobs: Knobs, highest: Expr, place: Expr, rules: Sequence[Expr] | Buffer = NO_RULES) -> None:
        self._knobs, self._highest, self._place = knobs, highest, place
        self._bound, self._last, self._cutoff = rules[0], rules[1], held(T.cast(rules[2], "int32"), "int32")

    def of_all(self, cut: VocabularyCut, start: Expr, logits: Buffer) -> list[Expr]:
        """Those of a thread's logits, 0 past the row's end."""
        places = [T.Bind(start + e) for e in range(cut.each)]
        found = [T.Select(i < cut.vocab, self._of(logits[e], i), T.float32(0.0)) for e, i in enumerate(places)]
        return [held(weight, "float32") for weight in found]

    def _of(self, logit: Expr, i: Expr) -> Expr:
        zero, one, knobs = T.float32(0.0), T.float32(1.0), self._knobs
        score, peak = (held(value / knobs.temperature, "float32") for value in (logit, self._highest))
        weight = held(T.Select(score < self._bound, zero, T.exp(score - peak)), "float32")
        inside = T.Or(weight > self._last, T.And(weight == self._last, i < self._cutoff))
        kept = T.Select(T.And(inside, weight >= knobs.min_p), weight, zero)
        return T.Select(knobs.greedy, T.Select(i == self._place, one, zero), kept)


def publish_rules(rules: Buffer, row: Expr, found: Sequence[Expr]) -> None:
    """For the launch that draws."""
    for n, rule in enumerate(found):
        publish(rules, [row, T.int32(n)], rule)
