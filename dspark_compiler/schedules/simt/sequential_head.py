"""A drafted token's logits in one launch: its predecessor's row of one small matrix, by another, on top of its own.

DSpark, eqs. 4 and 5: logits + W2 W1[x_{k-1}], of a rank so small that a thread holds all it needs of W2 while it waits
for the token. What drawn_token.py has to know of each chunk is found on the way.
"""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on, publish
from dspark_compiler.schedules.simt.chunk_stats import bring, publish_stats, stats_arg
from dspark_compiler.schedules.simt.row_chunks import THREADS
from dspark_compiler.schedules.simt.stored import copy, elements_at_once, widen
from dspark_compiler.schedules.simt.threads import launch, registers
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut
from dspark_compiler.schedules.simt.weights import WeightForm, WeightReader
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_MOST_NUMBERS = 256  # of W2 that a thread holds


@dataclass(frozen=True)
class HeadShape:
    """B sequences, g rows of logits each of which the kernel reads one, V tokens; matrices of ``rank``.

    ``first`` and ``second`` are the types W1 [V,r] and W2 [V,r] are stored in; ``packed``: W1 lies as W2 does.
    """

    batch: int
    block: int
    vocab: int
    rank: int
    first: str
    second: str
    packed: bool = False

    @property
    def fits(self) -> bool:
        """Whether a thread can hold what it reads of W2."""
        return self.form.format is None and self.form.padded * VocabularyCut(self.vocab).each <= _MOST_NUMBERS

    @property
    def form(self) -> WeightForm:
        """How W2 lies."""
        return WeightForm(self.vocab, self.rank, self.second)


@made_once
def sequential_head(name: str, shape: HeadShape, *, follows: bool, awaits: bool) -> tvm.tirx.PrimFunc:
    """Kernel for logits = base[:, column] + W2 W1[previous].

    Arguments: previous, with ``follows`` float32 [B] that a launch before has drawn, else int64 [B]; W1, W2
    (weights.py), base [B g, V], column int32 [1], temperature [B], logits [B,V], stats [B,C,4], embedded [B,r],
    which is W1[previous].
    ``awaits``: base may be yet to come.
    """
    cut, batch, vocab = VocabularyCut(shape.vocab), shape.batch, shape.vocab
    first = WeightForm(vocab, shape.rank, shape.first)
    args = [
        Arg("previous", (batch,), "float32" if follows else "int64"),
        Arg("first", (vocab, first.padded if shape.packed else shape.rank), shape.first),
        *shape.form.args(),
        Arg("base", (batch * shape.block, vocab)),
        Arg("column", (1,), "int32"),
        Arg("temperature", (batch,)),
        Arg("logits", (batch, vocab)),
        stats_arg(batch, cut),
        Arg("embedded", (batch, shape.rank)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((cut.count, batch), THREADS) as (chunk, row, thread):
            start, base = cut.start(chunk, thread), registers(cut.each)
            second = _Second(shape, cut, of, start)
            place = (T.Bind(row * shape.block + of["column"][0]),)
            bring(cut.asks(base, start, of["base"], place), awaits=awaits)
            x = _embedded(shape, first, of, _token(of["previous"], row, vocab, follows=follows))
            logits = second.times(x, base)
            cut.each_inside(start, lambda e, i: publish(of["logits"], [row, i], logits[e]))
            publish_stats(cut, of["stats"], (row, chunk, thread), logits, T.Bind(of["temperature"][row]))
            with when(T.And(chunk == 0, thread == 0)):
                for k in range(shape.rank):
                    T.buffer_store(of["embedded"], x[k], [row, k])

    awaited = [*(["previous"] if follows else []), *(["base"] if awaits else [])]
    return hands_on(kernel(name, args, body), args, publishes=["logits", "stats"], awaits=awaited)


class _Second:
    """A thread's rows of W2, on their way while it waits."""

    def __init__(self, shape: HeadShape, cut: VocabularyCut, of: dict[str, Buffer], start: Expr) -> None:
        self._shape, self._cut, self._reader = shape, cut, WeightReader(shape.form, of)
        rows = [T.Bind(T.min(start + e, cut.vocab - 1)) for e in range(cut.each)]
        self._held = self._reader.load(shape.form.accesses, cut.each, lambda i, line: (rows[line], T.int32(i)))

    def times(self, x: Buffer, base: Buffer) -> Buffer:
        """Base + W2 x, of the thread's rows."""
        sums, piece = registers(self._cut.each), self._shape.form.piece
        for e in range(self._cut.each):
            T.buffer_store(sums, base[e], [e])
            for k in range(self._shape.rank):
                weight = self._reader.number(self._held, (k // piece, e), 0, k % piece)
                T.buffer_store(sums, T.fma(weight, x[k], sums[e]), [e])
        return sums


def _token(previous: Buffer, row: Expr, vocab: int, *, follows: bool) -> Expr:
    """The sequence's last token; one that is none takes the nearest there is."""
    token = registers(1, "int32")
    if follows:
        number = registers(1)
        await_numbers([Ask(number, (0,), previous, (row,))])
        T.buffer_store(token, T.cast(number[0], "int32"), [0])
    else:
        T.buffer_store(token, T.cast(previous[row], "int32"), [0])
    return T.Bind(T.max(T.min(token[0], vocab - 1), 0))


def _embedded(shape: HeadShape, form: WeightForm, of: dict[str, Buffer], token: Expr) -> Buffer:
    """W1[token], whole, to each thread."""
    piece = elements_at_once(shape.first)
    piece = 1 if shape.rank % piece else piece
    stored, found = registers(shape.rank, shape.first), registers(shape.rank)
    for k in range(0, shape.rank, piece):
        column = T.int32(k)
        copy(stored, (column,), of["first"], form.place(token, column) if shape.packed else (token, column), piece)
    for k in range(shape.rank):
        T.buffer_store(found, widen(stored[k], shape.first), [k])
    return found
