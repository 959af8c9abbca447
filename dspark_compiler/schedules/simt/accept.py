"""Which drafts stay, and the token that follows: rejection sampling (Leviathan et al. 2023, arXiv 2211.17192)."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.accept import arguments
from dspark_compiler.schedules.simt.draw import Workspace, chunk_sum, drawn
from dspark_compiler.schedules.simt.group_counts import variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.threads import launch
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when


def accept(name: str, batch: int, width: int, vocab: int, *, drafts: int) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Accepts a prefix of each row's drafts, and the shape of its workspace.

    ``drafts`` is the rows of draft_probs, 0 where drafts are certain. Arguments: see schedules/accept.py, then
    workspace int64 (anything in it).
    """
    chunks = RowChunks(vocab)

    def body(
        tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, position: Buffer, length: Buffer, *rest: Buffer
    ) -> None:
        *drafted, accepted, following, next_position, next_length, sums = rest
        q = drafted[0] if drafted else None
        with launch((chunks.count, batch), THREADS) as (chunk, row, thread):
            place = _Place(tokens, probs, count, uniform, q, row)
            for which, weight in enumerate((place.left, place.target)):
                total = chunk_sum(chunks, chunk, thread, weight)
                with when(thread == 0):
                    T.buffer_store(sums, total, [which, row, chunk])
        with launch((batch,), THREADS) as (row, thread):
            place = _Place(tokens, probs, count, uniform, q, row)
            some = variable(T.int32(0), "int32")
            with T.serial(0, chunks.count) as chunk, when(sums[0, row, chunk] > T.int64(0)):
                T.buffer_store(some, T.int32(1), [0])
            # Rounding alone can reject where p equals q; then the target's own distribution decides.
            which = T.Bind(T.Select(some[0] == 1, T.int32(0), T.int32(1)))
            token = drawn(
                chunks,
                thread,
                lambda i: T.Select(which == 0, place.left(i), place.target(i)),
                lambda i: sums[which, row, i],
                uniform[row, width - 1],
            )
            with when(thread == 0):
                confirmed = T.Bind(T.Select(count[row] < 0, T.int32(0), place.kept + 1))
                T.buffer_store(accepted, confirmed, [row])
                T.buffer_store(next_position, position[row] + T.cast(confirmed, "int64"), [row])
                T.buffer_store(next_length, length[row] + confirmed, [row])
                T.buffer_store(following, T.cast(token, "int64"), [row])

    workspace = (2, batch, chunks.count)
    args = [*arguments(batch, width, vocab, drafts), Arg("sums", workspace, "int64")]
    return kernel(name, args, body), workspace


class _Place:
    """Emits where a row's drafts end: ``kept`` of them stay; each thread finds out for itself."""

    def __init__(
        self, tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, q: Buffer | None, row: Expr
    ) -> None:
        self._probs, self._q, self._row = probs, q, row
        width = int(tokens.shape[1])
        kept, rejected = variable(T.int32(0), "int32"), variable(T.int32(-1), "int32")
        with T.serial(0, width - 1) as i, when(T.And(i < count[row], rejected[0] < 0)):
            token = T.Bind(T.cast(tokens[row, i + 1], "int32"))
            p, drafted = T.Bind(probs[row, i, token]), T.float32(1.0) if q is None else T.Bind(q[row, i, token])
            # It stays with probability min(1, p/q). What has no probability is not drafted, and would stay.
            with T.If(T.Or(uniform[row, i] * drafted < p, drafted <= T.float32(0.0))):
                with T.Then():
                    T.buffer_store(kept, i + 1, [0])
                with T.Else():
                    T.buffer_store(rejected, token, [0])
        self.kept, self._rejected = T.Bind(kept[0]), T.Bind(rejected[0])

    def target(self, i: Expr) -> Expr:
        """The probability of a token to follow."""
        return T.Bind(self._probs[self._row, self.kept, i])

    def left(self, i: Expr) -> Expr:
        """max(p - q, 0) where a draft was rejected; a certain one has all of q, and p is at most 1."""
        p = self.target(i)
        if self._q is None:
            return T.Select(self._rejected == i, T.float32(0.0), p)
        q = T.Bind(self._q[self._row, T.min(self.kept, int(self._q.shape[1]) - 1), i])
        return T.Select(self._rejected >= 0, T.max(p - q, T.float32(0.0)), p)
