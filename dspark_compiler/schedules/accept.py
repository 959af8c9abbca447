"""Which drafts stay, and the token that follows: rejection sampling (Leviathan et al. 2023, arXiv 2211.17192)."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.draw import Drawing
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.row_sweep import float64, variable
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when


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
            kept, rejected = variable(T.int32(0), "int32"), variable(T.int32(-1), "int32")
            with T.serial(0, width - 1) as i, when(T.And(i < count[row], rejected[0] < 0)):
                token = T.Bind(T.cast(tokens[row, i + 1], "int32"))
                stays = _stays(uniform[row, i], probs[row, i, token], None if q is None else q[row, i, token])
                with T.If(stays):
                    with T.Then():
                        T.buffer_store(kept, i + 1, [0])
                    with T.Else():
                        T.buffer_store(rejected, token, [0])
            place = T.Bind(kept[0])
            q_place = T.Bind(T.min(place, max(drafts - 1, 0)))

            def weight(i: Expr) -> Expr:
                p = probs[row, place, i]
                # max(p - q, 0) in a rejected token's place; a certain draft has all of q, and p is at most 1.
                rest = T.float32(0.0) if q is None else T.max(p - q[row, q_place, i], T.float32(0.0))
                replaces = rejected[0] >= 0 if q is not None else rejected[0] == i
                return T.Select(replaces, rest, p)

            drawing = Drawing(vocab, isa, weight)
            drawing.add_up()
            # Rounding alone can reject where p equals q.
            with when(T.And(rejected[0] >= 0, drawing.total[0] <= T.float64(0.0))):
                T.buffer_store(rejected, T.int32(-1), [0])
                drawing.add_up()
            confirmed = T.Bind(T.Select(count[row] < 0, T.int32(0), place + 1))
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


def _stays(uniform: Expr, p: Expr, q: Expr | None) -> Expr:
    """Whether a drafted token stays: with probability min(1, p/q), or p where it was certain."""
    if q is None:
        return float64(uniform) < float64(p)
    # Nothing is drafted that has no probability; the operator lets such a token stay.
    return T.Or(q <= T.float32(0.0), float64(uniform) < float64(p) / float64(q))
