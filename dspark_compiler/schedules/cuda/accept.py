"""Which drafts stay, and the token that follows: block verification, see graph/block_verification.py."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.accept import arguments, ends_here, may_end, ratio
from dspark_compiler.schedules.cuda.draw import Drawing
from dspark_compiler.schedules.cuda.floats import product
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.cuda.threads import WARP, barrier, shared
from dspark_compiler.schedules.cuda.warps import from_lane
from dspark_compiler.schedules.tir import Buffer, Expr, kernel, made_once, when


@made_once
def accept(name: str, batch: int, width: int, vocab: int, *, drafts: int) -> tvm.tirx.PrimFunc:
    """Accepts a prefix of each row's drafts; ``drafts`` is the rows of draft_probs, 0 where drafts are certain.

    Each step of the search is a pass over the vocabulary. Those for whose step the bound of h_i already decides are
    left out; of greedy rows one is left, that of the token which follows. Arguments: see schedules/accept.py.
    """
    cluster = RowCluster(vocab)

    def body(
        tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, position: Buffer, length: Buffer, *rest: Buffer
    ) -> None:
        *drafted, accepted, following, next_position, next_length = rest
        q = drafted[0] if drafted else None
        with cluster.launch(batch) as (row, block, thread):
            looked = T.Bind(T.max(T.min(count[row], width - 1), 0))
            reach = _reaches(tokens, probs, q, (row, thread), looked)
            place, scale, ended = (
                variable(looked, "int32"),
                variable(T.float32(1.0), "float32"),
                variable(T.int32(0), "int32"),
            )
            amends = variable(T.int32(0), "int32")  # whether what follows makes up for what drafts got too much of

            def weight(i: Expr) -> Expr:
                p = T.Bind(probs[row, place[0], i])
                if q is None:
                    it = T.cast(tokens[row, T.min(place[0] + 1, width - 1)], "int32")
                    return T.Select(T.And(amends[0] == 1, it == i), T.float32(0.0), p)
                missing = product(scale[0], p) - T.Bind(q[row, T.min(place[0], drafts - 1), i])
                return T.Select(amends[0] == 1, T.max(missing, T.float32(0.0)), p)

            drawing = Drawing(cluster, (block, thread), weight)
            with T.serial(0, width) as turn:
                i = T.Bind(width - 1 - turn)
                number, r = T.Bind(uniform[row, T.max(i - 1, 0)]), T.Bind(variable(reach[i], "float64")[0])
                with when(T.And(T.And(ended[0] == 0, i <= looked), may_end(number, r, i))):
                    T.buffer_store(place, i, [0])
                    T.buffer_store(scale, T.cast(r, "float32"), [0])
                    T.buffer_store(amends, T.cast(i < looked, "int32"), [0])
                    drawing.add_up()
                    total = drawing.total[0] if q is not None else r * drawing.total[0]
                    ends = T.Or(i == looked, ends_here(number, r, total))
                    T.buffer_store(ended, T.cast(ends, "int32"), [0])
            # Rounding alone can end here where p equals q.
            with when(T.And(amends[0] == 1, drawing.total[0] <= T.float64(0.0))):
                T.buffer_store(amends, T.int32(0), [0])
                drawing.add_up()
            with when(T.And(block == 0, thread == 0)):
                confirmed = T.Bind(T.Select(count[row] < 0, T.int32(0), place[0] + 1))
                T.buffer_store(accepted, confirmed, [row])
                T.buffer_store(next_position, position[row] + T.cast(confirmed, "int64"), [row])
                T.buffer_store(next_length, length[row] + confirmed, [row])
            drawing.token(T.Bind(uniform[row, width - 1]), lambda token: T.buffer_store(following, token, [row]))

    return kernel(name, arguments(batch, width, vocab, drafts), body)


def _reaches(tokens: Buffer, probs: Buffer, q: Buffer | None, at: tuple[Expr, Expr], looked: Expr) -> Buffer:
    """The numbers r_0..r_k of a row's drafts, k = ``looked``, in each block; a lane looks at a draft."""
    row, thread = at
    drafts = int(tokens.shape[1]) - 1
    reach, running = shared(drafts + 1, "float64"), variable(T.float64(1.0), "float64")
    T.buffer_store(reach, T.float64(1.0), [0])
    for first in range(0, drafts, WARP):
        i = T.Bind(first + thread % WARP)
        mine = variable(T.float64(0.0), "float64")
        with when(i < looked):
            token = T.Bind(T.cast(tokens[row, i + 1], "int32"))
            r = ratio(probs[row, i, token], None if q is None else q[row, i, token])
            T.buffer_store(mine, r, [0])
        with T.serial(0, min(WARP, drafts - first)) as lane:
            T.buffer_store(running, T.min(running[0] * from_lane(mine[0], lane, "float64"), T.float64(1.0)), [0])
            T.buffer_store(reach, running[0], [first + lane + 1])
    barrier()
    return reach
