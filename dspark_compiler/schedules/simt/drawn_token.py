"""A token drawn from a row of logits by launches that need no barrier between them: what they hand on is awaited.

The first finds the highest logit of each chunk and the sum of its weights (chunk_stats.py, or whoever makes the logits:
sequential_head.py), the last puts these together, turns logits into probabilities and draws. Rows with rules that
depend on more than a logit take a launch in between, which for others does nothing: it adds up what a least weight
leaves of each chunk; with top-k and top-p one work group does all (row_limits.py). Weights are made anew from the same
logits where they are needed, rather than stored and awaited. Sums over chunks are in fixed point.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, keep_own, publish
from dspark_compiler.schedules.simt.chunk_stats import STAT, bring, highest_of_row, stats_arg
from dspark_compiler.schedules.simt.draw import GroupAmounts, total_of, walk
from dspark_compiler.schedules.simt.fixed_point import as_float, fixed, share
from dspark_compiler.schedules.simt.group_counts import group_sums_int64, held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.row_limits import WEIGHT_BITS, RowLimits
from dspark_compiler.schedules.simt.threads import barrier, launch, registers, shared
from dspark_compiler.schedules.simt.token_weights import NO_RULES, RULES, Knobs, Weights, knob_args, publish_rules
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut, first_highest
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_SUM = 2  # of a sum, int64
_SUM_BITS = 29  # of each of these two: none has the bits that stand for nothing


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
        *knob_args(batch),
        Arg("sums", (batch, cut.count, _SUM)),
        Arg("rules", (batch, RULES)),
        Arg("scores", (batch, vocab)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            knobs, start, own = Knobs(of, row, vocab), cut.start(chunk, thread), registers(cut.each)
            keep_own(of["scores"])
            with when(knobs.ruled):
                highest, place = highest_of_row(cut, of["stats"], row, thread)
                with T.If(knobs.limited):
                    with T.Then(), when(chunk == 0):
                        _weigh_limited(cut, of, (row, thread), highest, awaits=awaits)
                    with T.Else():
                        bring(cut.asks(own, start, of["logits"], (row,)), awaits=awaits)
                        weights, total = Weights(knobs, highest, place), variable(T.int64(0), "int64")
                        for weight in weights.of_all(cut, start, own):
                            T.buffer_store(total, total[0] + fixed(weight, WEIGHT_BITS), [0])
                        (whole,) = group_sums_int64([total[0]], thread, THREADS)
                        with when(thread == 0):
                            _publish_sum(of["sums"], (row, chunk), whole)
                        with when(T.And(chunk == 0, thread == 0)):
                            publish_rules(of["rules"], row, NO_RULES)

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
        Arg("rules", (batch, RULES)),
        *knob_args(batch),
        Arg("uniform", (batch, numbers)),
        Arg("column", (1,), "int32"),
        Arg("probs", (batch, vocab)),
        Arg("token", (batch,), "int64"),
        Arg("drawn", (batch,)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            knobs, start = Knobs(of, row, vocab), cut.start(chunk, thread)
            uniform = held(of["uniform"][row, of["column"][0]], "float32")
            own, stat = registers(cut.each), registers(STAT)
            asks, last = cut.asks(own, start, of["logits"], (row,)), T.Bind(T.min(thread, cut.count - 1))
            if not awaits:
                bring(asks, awaits=False)
                asks = []
            await_numbers([*asks, Ask(stat, (0,), of["stats"], (row, last, T.int32(0)), STAT)])
            highest, place = first_highest(stat[0], T.cast(stat[1], "int32"), thread)
            has_highest = T.truncdiv(place, cut.size) == thread
            rules, mass = _rules_and_mass(cut, of, (row, thread), knobs, lambda: knobs.mass(stat, highest, has_highest))
            masses, weights = GroupAmounts(thread, mass), registers(cut.each)
            for e, weight in enumerate(Weights(knobs, highest, place, rules).of_all(cut, start, own)):
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


def _rules_and_mass(
    cut: VocabularyCut, of: dict[str, Buffer], place: tuple[Expr, Expr], knobs: Knobs, free: Callable[[], Expr]
) -> tuple[Buffer, Expr]:
    """A row's rules, and the sum of the chunk that has a thread's number: ``free`` makes that of rows without any."""
    row, thread = place
    rules, mass = registers(RULES), variable(T.int64(0), "int64")
    with T.If(knobs.ruled):
        with T.Then():
            await_numbers([Ask(rules, (0,), of["rules"], (row, T.int32(0)), RULES)])
            with when(thread < cut.count):
                T.buffer_store(mass, _sum_of(of["sums"], row, thread), [0])
        with T.Else():
            for n, rule in enumerate(NO_RULES):
                T.buffer_store(rules, rule, [n])
            with when(thread < cut.count):
                T.buffer_store(mass, free(), [0])
    return rules, mass[0]


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
        publish_rules(of["rules"], row, (limits.bound, limits.last, cutoff, T.float32(0.0)))


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
