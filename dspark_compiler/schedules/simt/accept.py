"""Which drafts stay, and the token that follows: block verification, see graph/block_verification.py."""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.accept import arguments
from dspark_compiler.schedules.simt.draw import BITS, Workspace, chunk_sum, drawn, numbers, total_of
from dspark_compiler.schedules.simt.fixed_point import as_float, fixed
from dspark_compiler.schedules.simt.group_counts import held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.threads import barrier, launch, registers, shared
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when


@made_once
def accept(name: str, batch: int, width: int, vocab: int, *, drafts: int) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Accepts a prefix of each row's drafts, and the shape of its workspace.

    The first launch adds up the weights behind each draft that may be the last to stay, the second looks which one is.
    ``drafts`` is the rows of draft_probs, 0 where drafts are certain. Arguments: see schedules/accept.py, then
    workspace int64 (anything in it).
    """
    chunks = RowChunks(vocab)

    def body(
        tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, position: Buffer, length: Buffer, *rest: Buffer
    ) -> None:
        *drafted, accepted, following, next_position, next_length, sums = rest
        q = drafted[0] if drafted else None
        ways = width + 1  # of ending: behind so many drafts, or behind those that are sure with all of the target
        with launch((chunks.count, ways, batch), THREADS) as (chunk, way, row, thread):
            ends = _Ends(tokens, probs, count, uniform, q, row)
            with T.If(way == width):
                with T.Then():
                    total = chunk_sum(chunks, chunk, thread, lambda token: ends.target(ends.sure, token))
                    with when(thread == 0):
                        T.buffer_store(sums, total, [width, row, chunk])
                with T.Else(), when(ends.possible(way)):
                    total = chunk_sum(chunks, chunk, thread, lambda token: ends.amount(way, token))
                    with when(thread == 0):
                        T.buffer_store(sums, total, [way, row, chunk])
        with launch((batch,), THREADS) as (row, thread):
            ends = _Ends(tokens, probs, count, uniform, q, row)
            totals = shared(width, "int64")
            # Of ends that are not possible there are no sums, and nobody asks for them.
            assert width <= THREADS, "a verify of more tokens than a work group has threads"
            with when(thread < width):
                T.buffer_store(totals, total_of(numbers(chunks.count, lambda part: sums[thread, row, part])), [thread])
            barrier()
            place, found, some = (variable(T.int32(0), "int32") for _ in range(3))
            with T.serial(0, width) as turn:
                i = T.Bind(width - 1 - turn)
                with when(T.And(found[0] == 0, ends.possible(i))):
                    total = held(totals[i], "int64")
                    T.buffer_store(place, i, [0])
                    T.buffer_store(some, T.cast(total > T.int64(0), "int32"), [0])
                    T.buffer_store(found, T.cast(ends.here(i, as_float(total, BITS)), "int32"), [0])
            kept = T.Bind(place[0])
            # Rounding alone can end at what is sure, where p equals q; then the target's own distribution decides.
            which = held(T.Select(some[0] == 1, kept, T.int32(width)), "int32")
            token = drawn(
                chunks,
                thread,
                lambda i: T.Select(some[0] == 1, ends.amount(kept, i), ends.target(kept, i)),
                lambda i: sums[which, row, i],
                uniform[row, width - 1],
            )
            with when(thread == 0):
                confirmed = T.Bind(T.Select(count[row] < 0, T.int32(0), kept + 1))
                T.buffer_store(accepted, confirmed, [row])
                T.buffer_store(next_position, position[row] + T.cast(confirmed, "int64"), [row])
                T.buffer_store(next_length, length[row] + confirmed, [row])
                T.buffer_store(following, T.cast(token, "int64"), [row])

    workspace = (width + 1, batch, chunks.count)
    args = [*arguments(batch, width, vocab, drafts), Arg("sums", workspace, "int64")]
    return kernel(name, args, body), workspace


class _Ends:
    """Emits where a row's drafts may end; each thread finds out for itself. ``sure`` of them stay in any case."""

    def __init__(
        self, tokens: Buffer, probs: Buffer, count: Buffer, uniform: Buffer, q: Buffer | None, row: Expr
    ) -> None:
        self._tokens, self._probs, self._uniform, self._q, self._row = tokens, probs, uniform, q, row
        self._width = int(tokens.shape[1])
        self._looked = T.Bind(T.max(T.min(count[row], self._width - 1), 0))
        self._reach, sure = registers(self._width), variable(T.int32(0), "int32")
        T.buffer_store(self._reach, T.float32(1.0), [0])
        targets, drafts = self._of_drafts()
        for i in range(self._width - 1):
            with when(i < self._looked):
                reached, drafted = targets[i] * self._reach[i], drafts[i]
                # Nothing is drafted that has no probability.
                r = T.Select(drafted > T.float32(0.0), T.min(reached / drafted, T.float32(1.0)), self._reach[i])
                T.buffer_store(self._reach, r, [i + 1])
                with when(self._reach[i + 1] >= T.float32(1.0)):
                    T.buffer_store(sure, T.int32(i + 1), [0])
        self.sure = T.Bind(sure[0])

    def _of_drafts(self) -> tuple[Buffer, Buffer]:
        """What drafts have in the target's distribution and in their own, all on their way at the same time."""
        count = self._width - 1
        places, targets, drafts = (registers(max(1, count), dtype) for dtype in ("int32", "float32", "float32"))
        for i in range(count):
            token = T.cast(self._tokens[self._row, i + 1], "int32")
            T.buffer_store(places, T.max(T.min(token, int(self._probs.shape[2]) - 1), 0), [i])
        for i in range(count):
            T.buffer_store(targets, self._probs[self._row, i, places[i]], [i])
            # Where fewer are drafted than a verify takes, the rest is not looked at.
            row = min(i, int(self._q.shape[1]) - 1) if self._q is not None else 0
            own = T.float32(1.0) if self._q is None else self._q[self._row, row, places[i]]
            T.buffer_store(drafts, own, [i])
        return targets, drafts

    def _number(self, i: Expr) -> Expr:
        """The random number of x_i; of the anchor any."""
        return self._uniform[self._row, T.max(i - 1, 0)]

    def possible(self, i: Expr) -> Expr:
        """Whether i drafts may stay and no more, as far as is known before R_i: h_i is at most r_i."""
        inside = T.And(i >= self.sure, i <= self._looked)
        return T.And(inside, T.Or(i == self.sure, self._number(i) < self._reach[i]))

    def here(self, i: Expr, left: Expr) -> Expr:
        """Whether i drafts stay if no more do; ``left`` is R_i, float32."""
        share = left if self._q is not None else left * self._reach[i]
        below = self._number(i) * (share + T.float32(1.0) - self._reach[i]) < share
        return T.Or(T.Or(i == self._looked, i == self.sure), below)

    def target(self, i: Expr, token: Expr) -> Expr:
        """The probability of a token behind i drafts, in fixed point."""
        return fixed(self._probs[self._row, i, token], BITS)

    def amount(self, i: Expr, token: Expr) -> Expr:
        """What a token behind i drafts has to be drawn by: max(r p - q, 0), behind the last draft p.

        A certain draft has all of q, and p is at most 1; there it is in units of r. Integers are subtracted, since a
        device may round a float32 product before it subtracts, or not.
        """
        p = T.Bind(self._probs[self._row, i, token])
        if self._q is None:
            drafted = T.cast(self._tokens[self._row, T.min(i + 1, self._width - 1)], "int32")
            return T.Select(T.And(i < self._looked, drafted == token), T.int64(0), fixed(p, BITS))
        q = self._q[self._row, T.min(i, int(self._q.shape[1]) - 1), token]
        missing = T.max(fixed(self._reach[i] * p, BITS) - fixed(q, BITS), T.int64(0))
        return T.Select(i < self._looked, missing, fixed(p, BITS))
