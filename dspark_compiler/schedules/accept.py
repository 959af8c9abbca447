"""Which drafts stay, and the token that follows: block verification, see graph/block_verification.py."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.draw import Drawing
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.row_sweep import float64, variable
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, made_once, when


@made_once
def accept(name: str, batch: int, width: int, vocab: int, isa: VectorIsa, *, drafts: int) -> tvm.tirx.PrimFunc:
    """Accepts a prefix of each row's drafts; ``drafts`` is the rows of draft_probs, 0 where drafts are certain.

    Arguments: see ``arguments``.
    """

    def body(
        tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, position: Buffer, length: Buffer, *rest: Buffer
    ) -> None:
        *drafted, accepted, following, next_position, next_length = rest
        q = drafted[0] if drafted else None
        loop = T.parallel if batch > 1 else T.serial
        with loop(0, batch) as row:
            looked = T.Bind(T.min(T.max(count[row], 0), width - 1))
            reach = _reaches(tokens, probs, q, row, looked)
            place, scale = variable(looked, "int32"), variable(T.float32(1.0), "float32")
            ended = variable(T.int32(0), "int32")
            amends = variable(T.int32(0), "int32")  # whether what follows makes up for what drafts got too much of

            def weight(i: Expr) -> Expr:
                p = probs[row, place[0], i]
                if q is None:
                    missing = T.Select(tokens[row, T.min(place[0] + 1, width - 1)] == i, T.float32(0.0), p)
                else:
                    missing = T.max(scale[0] * p - q[row, T.min(place[0], drafts - 1), i], T.float32(0.0))
                return T.Select(amends[0] == 1, missing, p)

            drawing = Drawing(vocab, isa, weight)
            with T.serial(0, width) as turn:
                i = T.Bind(width - 1 - turn)
                number = T.Bind(uniform[row, T.max(i - 1, 0)])
                with when(T.And(T.And(ended[0] == 0, i <= looked), may_end(number, reach[i], i))):
                    T.buffer_store(place, i, [0])
                    T.buffer_store(scale, T.cast(reach[i], "float32"), [0])
                    T.buffer_store(amends, T.cast(i < looked, "int32"), [0])
                    drawing.add_up()
                    total = drawing.total[0] if q is not None else reach[i] * drawing.total[0]
                    ends = T.Or(i == looked, ends_here(number, reach[i], total))
                    T.buffer_store(ended, T.cast(ends, "int32"), [0])
            # Rounding alone can end here where p equals q.
            with when(T.And(amends[0] == 1, drawing.total[0] <= T.float64(0.0))):
                T.buffer_store(amends, T.int32(0), [0])
                drawing.add_up()
            confirmed = T.Bind(T.Select(count[row] < 0, T.int32(0), place[0] + 1))
            T.buffer_store(accepted, confirmed, [row])
            T.buffer_store(next_position, position[row] + T.cast(confirmed, "int64"), [row])
            T.buffer_store(next_length, length[row] + confirmed, [row])
            T.buffer_store(following, T.cast(drawing.token(uniform[row, width - 1]), "int64"), [row])

    return kernel(name, arguments(batch, width, vocab, drafts), body)


def arguments(batch: int, width: int, vocab: int, drafts: int) -> list[Arg]:
    """What accept takes and, from ``accepted`` on, fills, on any target: see ``dspark::accept``."""
    return [
        Arg("tokens", (batch, width), "int64"),
        Arg("probs", (batch, width, vocab)),
        Arg("count", (batch,), "int32"),
        Arg("uniform", (batch, width)),
        Arg("position", (batch,), "int64"),
        Arg("length", (batch,), "int32"),
        *([Arg("draft_probs", (batch, drafts, vocab))] if drafts else []),
        Arg("accepted", (batch,), "int32"),
        Arg("following", (batch,), "int64"),
        Arg("next_position", (batch,), "int64"),
        Arg("next_length", (batch,), "int32"),
    ]


def _reaches(tokens: Buffer, probs: Buffer, q: Buffer | None, row: Expr, looked: Expr) -> Buffer:
    """The numbers r_0..r_k of a row's drafts, k = ``looked``; anything behind them."""
    width = int(tokens.shape[1])
    reach = local(width, "float64")
    T.buffer_store(reach, T.float64(1.0), [0])
    with T.serial(0, width - 1) as i, when(i < looked):
        token = T.Bind(T.cast(tokens[row, i + 1], "int32"))
        r = ratio(probs[row, i, token], None if q is None else q[row, i, token])
        T.buffer_store(reach, T.min(reach[i] * r, T.float64(1.0)), [i + 1])
    return reach


def ratio(p: Expr, q: Expr | None) -> Expr:
    """The quotient p / q of a draft, in float64; q None: it was certain."""
    if q is None:
        return float64(p)
    # Nothing is drafted that has no probability.
    return T.Select(q > T.float32(0.0), float64(p) / float64(q), T.float64(1.0))


def may_end(uniform: Expr, reach: Expr, i: Expr) -> Expr:
    """Whether drafts up to x_i may stay as far as is known before R_i: h_i is at most r_i, and 1 of the anchor."""
    return T.Or(i == 0, float64(uniform) < reach)


def ends_here(uniform: Expr, reach: Expr, left: Expr) -> Expr:
    """Whether drafts up to x_i stay, more of them having been looked at; ``left`` is R_i, in float64."""
    return T.Or(reach >= T.float64(1.0), float64(uniform) * (left + T.float64(1.0) - reach) < left)
