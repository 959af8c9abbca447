"""A token drawn from a row of logits by launches that need no barrier between them: what they hand on is awaited.

The first finds the highest logit of each chunk and the sum of its weights (``row_peaks``, or whoever makes the logits:
sequential_head.py), the last puts these together, turns logits into probabilities and draws. Rows with rules that
depend on more than a logit take a launch in between, which for others does nothing: it adds up what a least weight
leaves of each chunk; with top-k and top-p one work group does all (row_limits.py). Weights are made anew from the same
logits where they are needed, rather than stored and awaited. Sums over chunks are in fixed point.
"""

from collections.abc import Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, keep_own, publish
from dspark_compiler.schedules.simt.draw import GroupAmounts, total_of, walk
from dspark_compiler.schedules.simt.fixed_point import as_float, fixed, share
from dspark_compiler.schedules.simt.group_counts import group_sums_int64, held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.row_limits import LOWEST, WEIGHT_BITS, RowLimits
from dspark_compiler.schedules.simt.threads import barrier, group_sum, launch, registers, shared
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut, first_highest, highest_of
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

STAT = 4  # numbers of a chunk: its highest logit, which that is, the sum of weights by it, and room
_SUM = 2  # of a sum, int64
_SUM_BITS = 29  # of each of these two: none has the bits that stand for nothing
_RULES = 4  # numbers of a row: a score, a weight, an index, and room
_NO_RULES = tuple(T.float32(rule) for rule in (LOWEST, -1.0, 0.0, 0.0))
_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def stats_arg(batch: int, cut: VocabularyCut) -> Arg:
    """What the first launch hands to the others."""
    return Arg("stats", (batch, cut.count, STAT))


def publish_stats(
    cut: VocabularyCut, stats: Buffer, at: tuple[Expr, Expr, Expr], logits: Buffer, temperature: Expr
) -> None:
    """Those of a chunk, of which each thread has some ``logits``; ``at`` is row, chunk and thread."""
    row, chunk, thread = at
    start = cut.start(chunk, thread)
    highest, place = highest_of(cut, start, logits, thread)
    peak, total = held(highest / temperature, "float32"), variable(T.float32(0.0), "float32")

    def add(e: int, _: Expr) -> None:
        T.buffer_store(total, total[0] + T.exp(held(logits[e] / temperature, "float32") - peak), [0])

    cut.each_inside(start, add)
    whole = group_sum(total[0], thread, THREADS)
    with when(thread == 0):
        # An index is a float32 exactly.
        for n, value in enumerate((highest, T.cast(place, "float32"), whole, T.float32(0.0))):
            publish(stats, [row, chunk, T.int32(n)], value)


@made_once
def row_stats(name: str, batch: int, vocab: int, *, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for what is told of chunks; arguments logits [B,V], temperature [B], stats [B,C,4]."""
    cut = VocabularyCut(vocab)
    args = [Arg("logits", (batch, vocab)), Arg("temperature", (batch,)), stats_arg(batch, cut)]

    def body(logits: Buffer, temperature: Buffer, stats: Buffer) -> None:
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            own = registers(cut.each)
            bring(cut.asks(own, cut.start(chunk, thread), logits, (row,)), awaits=awaits)
            publish_stats(cut, stats, (row, chunk, thread), own, T.Bind(temperature[row]))

    return hands_on(kernel(name, args, body), args, publishes=["stats"], awaits=["logits"] if awaits else [])


def bring(asks: list[Ask], *, awaits: bool) -> None:
    """What is asked for, as soon as it is there where it is awaited."""
    if awaits:
        await_numbers(asks)
        return
    for ask in asks:
        ask.load()


@made_once
def weigh_tokens(name: str, batch: int, vocab: int, *, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for sums of weights, chunk by chunk, of rows with rules, and the rules as they are for one logit.

    Arguments: logits [B,V], stats [B,C,4], temperature [B], top_k int32 [B], top_p [B], min_p [B], sums [B,C,2],
    rules [B,4], and room for a row each, scores [B,V] (anything in it). ``awaits``: logits may be yet to come.
    """
    cut = VocabularyCut(vocab)
    args = [
        Arg("logits", (batch, vocab)),
        stats_arg(batch, cut),
        *_knobs(batch),
        Arg("sums", (batch, cut.count, _SUM)),
        Arg("rules", (batch, _RULES)),
        Arg("scores", (batch, vocab)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            knobs, start, own = _Knobs(of, row, vocab), cut.start(chunk, thread), registers(cut.each)
            keep_own(of["scores"])
            with when(knobs.ruled):
                highest, place = _highest(cut, of["stats"], row, thread)
                with T.If(knobs.limited):
                    with T.Then(), when(chunk == 0):
                        _weigh_limited(cut, of, (row, thread), highest, awaits=awaits)
                    with T.Else():
                        bring(cut.asks(own, start, of["logits"], (row,)), awaits=awaits)
                        weights, total = _Weights(knobs, highest, place), variable(T.int64(0), "int64")
                        for weight in weights.of_all(cut, start, own):
                            T.buffer_store(total, total[0] + fixed(weight, WEIGHT_BITS), [0])
                        (whole,) = group_sums_int64([total[0]], thread, THREADS)
                        with when(thread == 0):
                            _publish_sum(of["sums"], (row, chunk), whole)
                        with when(T.And(chunk == 0, thread == 0)):
                            _publish_rules(of["rules"], row, _NO_RULES)

    awaited = ["stats", *(["logits"] if awaits else [])]
    return hands_on(kernel(name, args, body), args, publishes=["sums", "rules"], awaits=awaited, exchanges=["scores"])


@made_once
def draw_token(name: str, batch: int, vocab: int, numbers: int, *, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for the distribution of each row, and a token of it.

    Arguments: logits [B,V], stats [B,C,4], sums [B,C,2], rules [B,4], temperature [B], top_k int32 [B], top_p [B],
    min_p [B], uniform [B,N] in [0, 1), column int32 [1], probs [B,V], token int64 [B], drawn [B], which is the token,
    to be awaited.
    """
    cut = VocabularyCut(vocab)
    args = [
        Arg("logits", (batch, vocab)),
        stats_arg(batch, cut),
        Arg("sums", (batch, cut.count, _SUM)),
        Arg("rules", (batch, _RULES)),
        *_knobs(batch),
        Arg("uniform", (batch, numbers)),
        Arg("column", (1,), "int32"),
        Arg("probs", (batch, vocab)),
        Arg("token", (batch,), "int64"),
        Arg("drawn", (batch,)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            knobs, start, own, stat = (
                _Knobs(of, row, vocab),
                cut.start(chunk, thread),
                registers(cut.each),
                registers(STAT),
            )
            uniform = held(of["uniform"][row, of["column"][0]], "float32")
            last = T.Bind(T.min(thread, cut.count - 1))
            asks = cut.asks(own, start, of["logits"], (row,)) if awaits else []
            await_numbers([*asks, Ask(stat, (0,), of["stats"], (row, last, T.int32(0)), STAT)])
            if not awaits:
                bring(cut.asks(own, start, of["logits"], (row,)), awaits=False)
            highest, place = first_highest(stat[0], T.cast(stat[1], "int32"), thread)
            rules, mass = registers(_RULES), variable(T.int64(0), "int64")
            with T.If(knobs.ruled):
                with T.Then():
                    await_numbers([Ask(rules, (0,), of["rules"], (row, T.int32(0)), _RULES)])
                    with when(thread < cut.count):
                        T.buffer_store(mass, _sum_of(of["sums"], row, thread), [0])
                with T.Else():
                    for n, rule in enumerate(_NO_RULES):
                        T.buffer_store(rules, rule, [n])
                    with when(thread < cut.count):
                        T.buffer_store(mass, knobs.mass(stat, highest, T.truncdiv(place, cut.size) == thread), [0])
            masses, weights = GroupAmounts(thread, mass[0]), registers(cut.each)
            for e, weight in enumerate(_Weights(knobs, highest, place, rules).of_all(cut, start, own)):
                T.buffer_store(weights, weight, [e])
            probs, divisor = registers(cut.each), held(as_float(masses.total, WEIGHT_BITS), "float32")
            for e in range(cut.each):
                T.buffer_store(probs, weights[e] / divisor, [e])
            cut.store(probs, start, of["probs"], (row,))
            rest, chosen, left = share(uniform, masses.total), shared(1, "int32"), shared(1, "int64")
            with when(masses.holds(rest)):
                T.buffer_store(chosen, thread, [0])
                T.buffer_store(left, rest - masses.before, [0])
            barrier()
            rest, number = held(left[0], "int64"), held(chosen[0], "int32")
            with when(chunk == number):
                _draw(of, (row, start, thread), weights, rest)

    awaited = ["stats", "sums", "rules", *(["logits"] if awaits else [])]
    return hands_on(kernel(name, args, body), args, publishes=["drawn"], awaits=awaited)


def _draw(of: dict[str, Buffer], place: tuple[Expr, Expr, Expr], own: Buffer, rest: Expr) -> None:
    """The token of the chunk that the number falls into; ``own`` are a thread's weights."""
    row, start, thread = place
    amounts = registers(int(own.shape[0]), "int64")
    for e in range(int(own.shape[0])):
        T.buffer_store(amounts, fixed(own[e], WEIGHT_BITS), [e])
    inside = GroupAmounts(thread, total_of(amounts))
    # Less than the whole in any case, as the walk needs it, though it was added up another way before.
    rest = held(T.min(rest, inside.total - T.int64(1)), "int64")
    with when(inside.holds(rest)):
        number, _ = walk(amounts, rest - inside.before)
        token = T.Bind(start + number)
        T.buffer_store(of["token"], T.cast(token, "int64"), [row])
        publish(of["drawn"], [row], T.cast(token, "float32"))


class _Knobs:
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


class _Weights:
    """Weights of a row's logits, none above 1; ``rules`` are as published."""

    def __init__(self, knobs: _Knobs, highest: Expr, place: Expr, rules: Sequence[Expr] | Buffer = _NO_RULES) -> None:
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


def _knobs(batch: int) -> list[Arg]:
    return [Arg(knob, (batch,), "int32" if knob == "top_k" else "float32") for knob in _KNOBS]


def _highest(cut: VocabularyCut, stats: Buffer, row: Expr, thread: Expr) -> tuple[Expr, Expr]:
    """The highest logit of a row and where it is, of all chunks'."""
    stat, last = registers(STAT), T.Bind(T.min(thread, cut.count - 1))
    await_numbers([Ask(stat, (0,), stats, (row, last, T.int32(0)), STAT)])
    return first_highest(stat[0], T.cast(stat[1], "int32"), thread)


def _weigh_limited(
    cut: VocabularyCut, of: dict[str, Buffer], place: tuple[Expr, Expr], highest: Expr, *, awaits: bool
) -> None:
    """Sums and rules of a row by a single work group."""
    row, thread = place

    def logit(i: Expr) -> Expr:
        one = registers(1)
        bring([Ask(one, (0,), of["logits"], (row, i))], awaits=awaits)
        return one[0]

    limits = RowLimits(RowChunks(cut.vocab), of, of["scores"], (row,), thread)
    limits.find(highest, logit)
    with T.serial(0, cut.count) as chunk:
        total = variable(T.int64(0), "int64")
        for e in range(cut.each):
            # Elements that are the thread's own, as limits have cut the row.
            i = T.Bind((chunk * cut.each + e) * THREADS + thread)
            with when(i < cut.vocab):
                T.buffer_store(total, total[0] + fixed(limits.kept(i), WEIGHT_BITS), [0])
        (whole,) = group_sums_int64([total[0]], thread, THREADS)
        with when(thread == 0):
            _publish_sum(of["sums"], (row, chunk), whole)
    with when(thread == 0):
        cutoff = T.cast(T.min(limits.cutoff, cut.vocab), "float32")
        _publish_rules(of["rules"], row, (limits.bound, limits.last, cutoff, T.float32(0.0)))


def _publish_rules(rules: Buffer, row: Expr, found: Sequence[Expr]) -> None:
    for n, rule in enumerate(found):
        publish(rules, [row, T.int32(n)], rule)


def _publish_sum(sums: Buffer, at: tuple[Expr, Expr], total: Expr) -> None:
    total = held(total, "int64")
    low = T.bitwise_and(total, T.int64((1 << _SUM_BITS) - 1))
    for n, part in enumerate((low, total >> T.int64(_SUM_BITS))):
        publish(sums, [*at, T.int32(n)], T.reinterpret("float32", T.cast(part, "uint32")))


def _sum_of(sums: Buffer, row: Expr, chunk: Expr) -> Expr:
    """That of a chunk, as it was published."""
    pair = registers(_SUM)
    await_numbers([Ask(pair, (0,), sums, (row, chunk, T.int32(0)), _SUM)])
    low, high = (T.cast(T.reinterpret("uint32", pair[n]), "int64") for n in range(_SUM))
    return T.Bind((high << T.int64(_SUM_BITS)) + low)
