"""A token drawn from a row of logits by launches that need no barrier between them: what they hand on is awaited.

The first finds the highest logit of each chunk (``row_peaks``, or whoever makes the logits: sequential_head.py), the
second adds up the weights of chunks, the third turns weights into probabilities and draws: all that is left to tell
each other are a few numbers a chunk. Weights are made twice from the same logits, rather than stored and awaited.
Sums are in fixed point. Rules for which all of a row must be known are a single work group's (row_limits.py).
"""

from dataclasses import dataclass, replace

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, publish
from dspark_compiler.schedules.simt.draw import GroupAmounts, total_of, walk
from dspark_compiler.schedules.simt.fixed_point import as_float, fixed, share
from dspark_compiler.schedules.simt.group_counts import group_sums_int64, held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.row_limits import LOWEST, WEIGHT_BITS, RowLimits
from dspark_compiler.schedules.simt.threads import launch, registers
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut, first_highest, highest_of
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

PEAK = 2  # numbers of a chunk: its highest logit, and which that is
_SUM = 2  # and of its sum, int64
_SUM_BITS = 29  # of each of these two: none has the bits that stand for nothing
_RULES = 8  # numbers of a row: the highest logit, where it is, a score, a weight, an index, and room
_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def peaks_arg(batch: int, cut: VocabularyCut) -> Arg:
    """What the first launch hands to the second."""
    return Arg("peaks", (batch, cut.count, PEAK))


def publish_peak(peaks: Buffer, at: tuple[Expr, Expr], value: Expr, place: Expr) -> None:
    """The highest logit of a chunk and its index, which float32 holds exactly."""
    publish(peaks, [*at, T.int32(0)], value)
    publish(peaks, [*at, T.int32(1)], T.cast(place, "float32"))


@made_once
def row_peaks(name: str, batch: int, vocab: int, *, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for the highest logits of rows, chunk by chunk; arguments logits [B,V], peaks [B,C,2]."""
    cut = VocabularyCut(vocab)
    args = [Arg("logits", (batch, vocab)), peaks_arg(batch, cut)]

    def body(logits: Buffer, peaks: Buffer) -> None:
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            start, own = cut.start(chunk, thread), registers(cut.each)
            bring(cut.asks(own, start, logits, (row,)), awaits=awaits)
            value, place = highest_of(cut, start, own, thread)
            with when(thread == 0):
                publish_peak(peaks, (row, chunk), value, place)

    return hands_on(kernel(name, args, body), args, publishes=["peaks"], awaits=["logits"] if awaits else [])


def bring(asks: list[Ask], *, awaits: bool) -> None:
    """What is asked for, as soon as it is there where it is awaited."""
    if awaits:
        await_numbers(asks)
        return
    for ask in asks:
        ask.load()


@made_once
def weigh_tokens(name: str, batch: int, vocab: int, *, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for sums of weights, chunk by chunk, and what the third launch must know of a row.

    Arguments: logits [B,V], peaks [B,C,2], temperature [B], top_k int32 [B], top_p [B], min_p [B], sums [B,C,2],
    rules [B,8], and room for a row each, scores [B,V] (anything in it). ``awaits``: logits may be yet to come.
    """
    cut = VocabularyCut(vocab)
    args = [
        Arg("logits", (batch, vocab)),
        peaks_arg(batch, cut),
        *(Arg(knob, (batch,), "int32" if knob == "top_k" else "float32") for knob in _KNOBS),
        Arg("sums", (batch, cut.count, _SUM)),
        Arg("rules", (batch, _RULES)),
        Arg("scores", (batch, vocab)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            highest, place = _highest(cut, of["peaks"], row, thread)
            temperature = T.Bind(of["temperature"][row])
            top_k, top_p = T.Bind(of["top_k"][row]), T.Bind(of["top_p"][row])
            limited = T.Or(T.And(top_k > 0, top_k < vocab), top_p < T.float32(1.0))
            with T.If(T.And(limited, temperature != T.float32(0.0))):
                with T.Then(), when(chunk == 0):
                    _weigh_limited(cut, of, row, thread, (highest, place), awaits=awaits)
                with T.Else():
                    weights, start = _Weights.free(of, row, highest, place), cut.start(chunk, thread)
                    own = _weigh(cut, of["logits"], (row, start), weights, awaits=awaits)
                    total = variable(T.int64(0), "int64")
                    for e in range(cut.each):
                        T.buffer_store(total, total[0] + fixed(own[e], WEIGHT_BITS), [0])
                    (whole,) = group_sums_int64([total[0]], thread, THREADS)
                    with when(thread == 0):
                        _publish_sum(of["sums"], (row, chunk), whole)
                    with when(T.And(chunk == 0, thread == 0)):
                        weights.publish(of["rules"], row)

    awaited = ["peaks", *(["logits"] if awaits else [])]
    return hands_on(
        kernel(name, args, body), args, publishes=["sums", "rules"], awaits=awaited, exchanges=["scores"]
    )


@made_once
def draw_token(name: str, batch: int, vocab: int, numbers: int, *, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for the distribution of each row, and a token of it.

    Arguments: logits [B,V], sums [B,C,2], rules [B,8], temperature [B], min_p [B], uniform [B,N] in [0, 1), column
    int32 [1], probs [B,V], token int64 [B], drawn [B], which is the token, to be awaited.
    """
    cut = VocabularyCut(vocab)
    args = [
        Arg("logits", (batch, vocab)),
        Arg("sums", (batch, cut.count, _SUM)),
        Arg("rules", (batch, _RULES)),
        *(Arg(knob, (batch,)) for knob in ("temperature", "min_p")),
        Arg("uniform", (batch, numbers)),
        Arg("column", (1,), "int32"),
        Arg("probs", (batch, vocab)),
        Arg("token", (batch,), "int64"),
        Arg("drawn", (batch,)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            masses = GroupAmounts(thread, _mass(cut, of["sums"], row, thread))
            total = held(masses.total(), "int64")
            chosen, rest = masses.find(share(of["uniform"][row, of["column"][0]], total))
            weights, start = _Weights.of_rules(of, row), cut.start(chunk, thread)
            own = _weigh(cut, of["logits"], (row, start), weights, awaits=awaits)
            probs, divisor = registers(cut.each), held(as_float(total, WEIGHT_BITS), "float32")
            for e in range(cut.each):
                T.buffer_store(probs, own[e] / divisor, [e])
            cut.store(probs, start, of["probs"], (row,))
            with when(chunk == chosen):
                _draw(of, (row, start, thread), own, rest)

    awaited = ["sums", "rules", *(["logits"] if awaits else [])]
    return hands_on(kernel(name, args, body), args, publishes=["drawn"], awaits=awaited)


def _draw(of: dict[str, Buffer], place: tuple[Expr, Expr, Expr], own: Buffer, rest: Expr) -> None:
    """The token of the chunk that the number falls into; ``own`` are a thread's weights."""
    row, start, thread = place
    amounts = registers(int(own.shape[0]), "int64")
    for e in range(int(own.shape[0])):
        T.buffer_store(amounts, fixed(own[e], WEIGHT_BITS), [e])
    inside = GroupAmounts(thread, total_of(amounts))
    # Less than the whole in any case, as the walks need it, though another launch has added it up.
    owner, left = inside.find(held(T.min(rest, inside.total() - T.int64(1)), "int64"))
    with when(thread == owner):
        number, _ = walk(amounts, left)
        token = T.Bind(start + number)
        T.buffer_store(of["token"], T.cast(token, "int64"), [row])
        publish(of["drawn"], [row], T.cast(token, "float32"))


@dataclass(frozen=True)
class _Weights:
    """What the weight of a logit goes by."""

    temperature: Expr
    min_p: Expr
    highest: Expr
    place: Expr
    bound: Expr
    last: Expr
    cutoff: Expr

    @staticmethod
    def free(of: dict[str, Buffer], row: Expr, highest: Expr, place: Expr) -> "_Weights":
        """Without rules for which all of the row must be known."""
        knobs = (T.Bind(of[name][row]) for name in ("temperature", "min_p"))
        return _Weights(*knobs, highest, place, T.float32(LOWEST), T.float32(-1.0), T.int32(0))

    @staticmethod
    def of_rules(of: dict[str, Buffer], row: Expr) -> "_Weights":
        """As the launch before has found them."""
        found, half = registers(_RULES), _RULES // 2
        await_numbers([Ask(found, (at,), of["rules"], (row, T.int32(at)), half) for at in (0, half)])
        knobs = (T.Bind(of[name][row]) for name in ("temperature", "min_p"))
        place, cutoff = (held(T.cast(found[at], "int32"), "int32") for at in (1, 4))
        return _Weights(*knobs, found[0], place, found[2], found[3], cutoff)

    def publish(self, rules: Buffer, row: Expr) -> None:
        """For ``of_rules``."""
        place, cutoff = (T.cast(index, "float32") for index in (self.place, self.cutoff))
        found = (self.highest, place, self.bound, self.last, cutoff)
        for at in range(_RULES):
            publish(rules, [row, T.int32(at)], found[at] if at < len(found) else T.float32(0.0))

    def of(self, logit: Expr, i: Expr) -> Expr:
        """The weight of element i, at most 1."""
        zero, one = T.float32(0.0), T.float32(1.0)
        score, peak = (held(value / self.temperature, "float32") for value in (logit, self.highest))
        weight = held(T.Select(score < self.bound, zero, T.exp(score - peak)), "float32")
        inside = T.Or(weight > self.last, T.And(weight == self.last, i < self.cutoff))
        kept = T.Select(T.And(inside, weight >= self.min_p), weight, zero)
        return held(T.Select(self.temperature == zero, T.Select(i == self.place, one, zero), kept), "float32")


def _highest(cut: VocabularyCut, peaks: Buffer, row: Expr, thread: Expr) -> tuple[Expr, Expr]:
    """The highest logit of a row and where it is, of all chunks'."""
    best, place = variable(T.float32(LOWEST), "float32"), variable(T.int32(cut.vocab - 1), "int32")
    with when(thread < cut.count):
        pair = registers(PEAK)
        await_numbers([Ask(pair, (0,), peaks, (row, thread, T.int32(0)), PEAK)])
        T.buffer_store(best, pair[0], [0])
        T.buffer_store(place, T.cast(pair[1], "int32"), [0])
    return first_highest(best[0], place[0], thread)


def _weigh(
    cut: VocabularyCut, logits: Buffer, place: tuple[Expr, Expr], weights: _Weights, *, awaits: bool
) -> Buffer:
    """A thread's weights, 0 past the row's end."""
    (row, start), own, found = place, registers(cut.each), registers(cut.each)
    bring(cut.asks(own, start, logits, (row,)), awaits=awaits)
    for e in range(cut.each):
        i = T.Bind(start + e)
        T.buffer_store(found, T.Select(i < cut.vocab, weights.of(own[e], i), T.float32(0.0)), [e])
    return found


def _weigh_limited(
    cut: VocabularyCut, of: dict[str, Buffer], row: Expr, thread: Expr, peak: tuple[Expr, Expr], *, awaits: bool
) -> None:
    """Sums and rules of a row by a single work group."""

    def logit(i: Expr) -> Expr:
        one = registers(1)
        bring([Ask(one, (0,), of["logits"], (row, i))], awaits=awaits)
        return one[0]

    limits = RowLimits(RowChunks(cut.vocab), of, of["scores"], (row,), thread)
    limits.find(peak[0], logit)
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
        weights = _Weights.free(of, row, *peak)
        found = replace(weights, bound=limits.bound, last=limits.last, cutoff=T.min(limits.cutoff, cut.vocab))
        found.publish(of["rules"], row)


def _publish_sum(sums: Buffer, at: tuple[Expr, Expr], total: Expr) -> None:
    total = held(total, "int64")
    low = T.bitwise_and(total, T.int64((1 << _SUM_BITS) - 1))
    for n, part in enumerate((low, total >> T.int64(_SUM_BITS))):
        publish(sums, [*at, T.int32(n)], T.reinterpret("float32", T.cast(part, "uint32")))


def _mass(cut: VocabularyCut, sums: Buffer, row: Expr, thread: Expr) -> Expr:
    """The sum of the chunk that has a thread's number."""
    mass = variable(T.int64(0), "int64")
    with when(thread < cut.count):
        pair = registers(_SUM)
        await_numbers([Ask(pair, (0,), sums, (row, thread, T.int32(0)), _SUM)])
        low, high = (T.cast(T.reinterpret("uint32", pair[n]), "int64") for n in range(_SUM))
        T.buffer_store(mass, (high << T.int64(_SUM_BITS)) + low, [0])
    return mass[0]
