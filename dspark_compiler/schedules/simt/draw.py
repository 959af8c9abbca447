"""Drawing a token from weights: sums of chunks, then of teams and threads of the chunk that the number falls into."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.fixed_point import fixed, share
from dspark_compiler.schedules.simt.group_counts import group_sums_int64, held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, registers, shared
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

BITS = 56  # fractional: weights of a distribution add up to about 1

Amount = Callable[[Expr | int], Expr]  # a weight as int64, in fixed point
Workspace = tuple[int, ...]


def draw(name: str, batch: int, vocab: int) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """A token of each distribution, and the shape of its workspace.

    Arguments: probs [B,V], uniform [B], out int64 [B], workspace int64 (anything in it).
    """
    chunks = RowChunks(vocab)

    def body(probs: Buffer, uniform: Buffer, out: Buffer, sums: Buffer) -> None:
        with launch((chunks.count, batch), THREADS) as (chunk, row, thread):
            total = chunk_sum(chunks, chunk, thread, lambda i: fixed(probs[row, i], BITS))
            with when(thread == 0):
                T.buffer_store(sums, total, [row, chunk])
        with launch((batch,), THREADS) as (row, thread):
            token = drawn(chunks, thread, lambda i: fixed(probs[row, i], BITS), lambda i: sums[row, i], uniform[row])
            with when(thread == 0):
                T.buffer_store(out, T.cast(token, "int64"), [row])

    workspace = (batch, chunks.count)
    args = [Arg("probs", (batch, vocab)), Arg("uniform", (batch,)), Arg("out", (batch,), "int64")]
    return kernel(name, [*args, Arg("sums", workspace, "int64")], body), workspace


def chunk_sum(chunks: RowChunks, chunk: Expr, thread: Expr, amount: Amount) -> Expr:
    """The sum of a chunk's weights; the whole work group has to get here."""
    total, amounts = variable(T.int64(0), "int64"), chunks.read(chunk, thread, amount, "int64")
    for number, _, inside in chunks.places(chunk, thread):
        T.buffer_store(total, total[0] + T.Select(inside, amounts[number], T.int64(0)), [0])
    return group_sums_int64([total[0]], thread, THREADS)[0]


def drawn(chunks: RowChunks, thread: Expr, amount: Amount, chunk_sums: Amount, uniform: Expr) -> Expr:
    """The first token up to which more than ``uniform`` of all weight lies, by a work group, all of which gets it.

    All loops are written out, so that what they read is on its way at the same time.
    """
    each = chunks.size // THREADS
    sums = numbers(chunks.count, chunk_sums)
    # Less than the whole, since uniform is below 1: the walks below find what they look for.
    chunk, rest = walk(sums, share(uniform, total_of(sums)))
    start = T.Bind(chunk * chunks.size)

    def within(i: Expr) -> Expr:
        """The amount of element i of the chunk; nothing behind the last one."""
        inside = T.Bind(amount(T.Bind(T.min(start + i, chunks.extent - 1))))
        return T.Bind(T.Select(start + i < chunks.extent, inside, T.int64(0)))

    own, found = numbers(each, lambda e: within(thread * each + e)), shared(1, "int32")
    amounts = GroupAmounts(thread, total_of(own))
    with when(amounts.holds(rest)):
        place, _ = walk(own, rest - amounts.before)
        T.buffer_store(found, T.min(start + thread * each + place, chunks.extent - 1), [0])
    barrier()
    return held(found[0], "int32")


class GroupAmounts:
    """An amount of each thread of a work group, int64, the first thread's first; all of it has to get here.

    Attributes:
        before: what the threads before this one have.
        total: what all have.
    """

    def __init__(self, thread: Expr, own: Expr) -> None:
        teams, self._own = THREADS // TEAM, held(own, "int64")
        of_threads, of_teams = shared(THREADS, "int64"), shared(teams, "int64")
        T.buffer_store(of_threads, self._own, [thread])
        barrier()
        with when(thread < teams):
            T.buffer_store(of_teams, total_of(numbers(TEAM, lambda lane: of_threads[thread * TEAM + lane])), [thread])
        barrier()
        # Sums of selected numbers rather than a walk along them: no addition waits for a comparison.
        team, lane, none = T.Bind(thread // TEAM), T.Bind(thread % TEAM), T.int64(0)
        sums = numbers(teams, lambda i: of_teams[i])
        earlier = numbers(teams, lambda i: T.Select(i < team, sums[i], none))
        beside = numbers(TEAM, lambda i: T.Select(i < lane, of_threads[team * TEAM + i], none))
        self.total = held(total_of(sums), "int64")
        self.before = held(total_of(earlier) + total_of(beside), "int64")

    def holds(self, rest: Expr) -> Expr:
        """Whether amounts add up to more than ``rest`` with this thread's, and not before."""
        return T.And(self.before <= rest, rest < self.before + self._own)


def numbers(count: int, amount: Callable[[int], Expr]) -> Buffer:
    """amount(0), ..., amount(count - 1)."""
    found = registers(count, "int64")
    for i in range(count):
        T.buffer_store(found, amount(i), [i])
    return found


def total_of(amounts: Buffer) -> Expr:
    """Their sum."""
    total = variable(T.int64(0), "int64")
    for i in range(int(amounts.shape[0])):
        T.buffer_store(total, total[0] + amounts[i], [0])
    return total[0]


def walk(amounts: Buffer, target: Expr) -> tuple[Expr, Expr]:
    """The first of ``amounts`` with which their sum exceeds ``target``, and what is left of it before that."""
    found, left = variable(T.int32(-1), "int32"), variable(target, "int64")
    for i in range(int(amounts.shape[0])):
        with when(found[0] < 0), T.If(amounts[i] > left[0]):
            with T.Then():
                T.buffer_store(found, T.int32(i), [0])
            with T.Else():
                T.buffer_store(left, left[0] - amounts[i], [0])
    return T.Bind(T.max(found[0], 0)), T.Bind(left[0])
