"""Which drafts stay, and the token that follows: rejection sampling (Leviathan et al. 2023, arXiv 2211.17192)."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.accept import arguments
from dspark_compiler.schedules.cuda.draw import Drawing
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.cuda.threads import WARP
from dspark_compiler.schedules.cuda.warps import first_lane, from_lane
from dspark_compiler.schedules.tir import Buffer, Expr, kernel, when


def accept(name: str, batch: int, width: int, vocab: int, *, drafts: int) -> tvm.tirx.PrimFunc:
    """Accepts a prefix of each row's drafts; ``drafts`` is the rows of draft_probs, 0 where drafts are certain.

    Arguments: see schedules/accept.py.
    """
    cluster = RowCluster(vocab)

    def body(
        tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, position: Buffer, length: Buffer, *rest: Buffer
    ) -> None:
        *drafted, accepted, following, next_position, next_length = rest
        q = drafted[0] if drafted else None
        with cluster.launch(batch) as (row, block, thread):
            kept, token = _first_rejected(
                tokens, probs, uniform, q, (row, thread), T.Bind(T.max(T.min(count[row], width - 1), 0))
            )
            rejected = variable(token, "int32")
            q_place = T.Bind(T.min(kept, max(drafts - 1, 0)))

            def weight(i: Expr) -> Expr:
                p = T.Bind(probs[row, kept, i])
                # max(p - q, 0) in a rejected token's place; a certain draft has all of q, and p is at most 1.
                if q is None:
                    return T.Select(rejected[0] == i, T.float32(0.0), p)
                rest = p - T.Bind(q[row, q_place, i])
                return T.Select(rejected[0] >= 0, T.max(rest, T.float32(0.0)), p)

            drawing = Drawing(cluster, (block, thread), weight)
            drawing.add_up()
            # Rounding alone can reject where p equals q.
            with when(T.And(rejected[0] >= 0, drawing.total[0] <= T.float64(0.0))):
                T.buffer_store(rejected, T.int32(-1), [0])
                drawing.add_up()
            with when(T.And(block == 0, thread == 0)):
                confirmed = T.Bind(T.Select(count[row] < 0, T.int32(0), kept + 1))
                T.buffer_store(accepted, confirmed, [row])
                T.buffer_store(next_position, position[row] + T.cast(confirmed, "int64"), [row])
                T.buffer_store(next_length, length[row] + confirmed, [row])
            drawing.token(T.Bind(uniform[row, width - 1]), lambda token: T.buffer_store(following, token, [row]))

    return kernel(name, arguments(batch, width, vocab, drafts), body)


def _first_rejected(
    tokens: Buffer, probs: Buffer, uniform: Buffer, q: Buffer | None, at: tuple[Expr, Expr], count: Expr
) -> tuple[Expr, Expr]:
    """How many of ``count`` drafts stay, and the one rejected then or -1; each warp finds out, a lane a draft."""
    row, thread = at
    kept, rejected = variable(count, "int32"), variable(T.int32(-1), "int32")
    for first in range(0, int(tokens.shape[1]) - 1, WARP):
        i = T.Bind(first + thread % WARP)
        token, goes = variable(T.int32(0), "int32"), variable(T.int32(0), "int32")
        with when(i < count):
            T.buffer_store(token, T.cast(tokens[row, i + 1], "int32"), [0])
            p, drafted = probs[row, i, token[0]], None if q is None else q[row, i, token[0]]
            T.buffer_store(goes, T.Select(_stays(uniform[row, i], p, drafted), T.int32(0), T.int32(1)), [0])
        lane = first_lane(goes[0] == 1)
        other = from_lane(token[0], T.max(lane, 0), "int32")
        with when(T.And(lane >= 0, rejected[0] < 0)):
            T.buffer_store(kept, first + lane, [0])
            T.buffer_store(rejected, other, [0])
    return T.Bind(kept[0]), T.Bind(rejected[0])


def _stays(uniform: Expr, p: Expr, q: Expr | None) -> Expr:
    """Whether a drafted token stays: with probability min(1, p/q), or p where it was certain."""
    number = T.cast(uniform, "float64")
    if q is None:
        return number < T.cast(p, "float64")
    # Nothing is drafted that has no probability; the operator lets such a token stay.
    return T.Or(q <= T.float32(0.0), number < T.cast(p, "float64") / T.cast(q, "float64"))
