"""What launches tell each other of chunks of logits: the highest, where it is, and the sum of weights by it."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, publish
from dspark_compiler.schedules.simt.group_counts import held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS
from dspark_compiler.schedules.simt.threads import group_sum, launch, registers
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut, first_highest, highest_of
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

STAT = 4  # numbers of a chunk: its highest logit, which that is, the sum of weights by it, and room


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


def highest_of_row(cut: VocabularyCut, stats: Buffer, row: Expr, thread: Expr) -> tuple[Expr, Expr]:
    """The highest logit of a row and where it is, of all chunks'."""
    stat, last = registers(STAT), T.Bind(T.min(thread, cut.count - 1))
    await_numbers([Ask(stat, (0,), stats, (row, last, T.int32(0)), STAT)])
    return first_highest(stat[0], T.cast(stat[1], "int32"), thread)
