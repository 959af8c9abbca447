"""Drawing a token from weights: sums of chunks, then of teams and threads of the chunk that the number falls into."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.fixed_point import fixed, share
from dspark_compiler.schedules.simt.group_counts import group_sums_int64, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, shared
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

BITS = 56  # fractional: weights of a distribution add up to about 1

Amount = Callable[[Expr], Expr]  # a weight as int64, in fixed point
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
    total = variable(T.int64(0), "int64")
    chunks.each(chunk, thread, lambda i: T.buffer_store(total, total[0] + amount(i), [0]))
    return group_sums_int64([total[0]], thread, THREADS)[0]


def drawn(chunks: RowChunks, thread: Expr, amount: Amount, chunk_sums: Amount, uniform: Expr) -> Expr:
    """The first token up to which more than ``uniform`` of all weight lies, by a work group, all of which gets it."""
    total = variable(T.int64(0), "int64")
    with T.serial(0, chunks.count) as chunk:
        T.buffer_store(total, total[0] + chunk_sums(chunk), [0])
    # Less than the whole, since uniform is below 1: the walks below find what they look for.
    rest = share(uniform, total[0])
    chunk, rest = _walk(chunks.count, chunk_sums, rest)
    start, each = T.Bind(chunk * chunks.size), chunks.size // THREADS

    def within(i: Expr) -> Expr:
        """The amount of element i of the chunk; nothing behind the last one."""
        inside = T.Bind(amount(T.Bind(T.min(start + i, chunks.extent - 1))))
        return T.Bind(T.Select(start + i < chunks.extent, inside, T.int64(0)))

    mine, threads, teams = variable(T.int64(0), "int64"), shared(THREADS, "int64"), shared(THREADS // TEAM, "int64")
    with T.serial(0, each) as i:
        T.buffer_store(mine, mine[0] + within(thread * each + i), [0])
    T.buffer_store(threads, mine[0], [thread])
    barrier()
    with when(thread < THREADS // TEAM):
        T.buffer_store(mine, T.int64(0), [0])
        with T.serial(0, TEAM) as lane:
            T.buffer_store(mine, mine[0] + threads[thread * TEAM + lane], [0])
        T.buffer_store(teams, mine[0], [thread])
    barrier()
    team, rest = _walk(THREADS // TEAM, lambda i: teams[i], rest)
    lane, rest = _walk(TEAM, lambda i: threads[team * TEAM + i], rest)
    first = T.Bind((team * TEAM + lane) * each)
    place, _ = _walk(each, lambda i: within(first + i), rest)
    return T.Bind(T.min(start + first + place, chunks.extent - 1))


def _walk(count: int, amount: Amount, target: Expr) -> tuple[Expr, Expr]:
    """The first of ``count`` amounts with which their sum exceeds ``target``, and what is left of it before that."""
    found, left = variable(T.int32(-1), "int32"), variable(target, "int64")
    with T.serial(0, count) as i:
        here = T.Bind(amount(i))
        with when(found[0] < 0), T.If(here > left[0]):
            with T.Then():
                T.buffer_store(found, i, [0])
            with T.Else():
                T.buffer_store(left, left[0] - here, [0])
    return T.Bind(T.max(found[0], 0)), T.Bind(left[0])
