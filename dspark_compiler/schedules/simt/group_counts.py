"""Integers that a work group adds up: counts of several things at once, and sums in fixed point.

Sums of integers are the same in any order, so that what is decided by them does not depend on a device's.
"""

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import TEAM, barrier, registers, shared, team_max, team_sum
from dspark_compiler.schedules.tir import Buffer, Expr, when

_LOW_BITS = 26  # eight of them add up within 32


def variable(value: Expr, dtype: str) -> Buffer:
    """A number of a thread's that changes."""
    place = registers(1, dtype)
    T.buffer_store(place, value, [0])
    return place


def held(value: Expr, dtype: str) -> Expr:
    """A number that is computed here, once: what is merely bound is written out wherever it is used."""
    return T.Bind(variable(value, dtype)[0])


def group_counts(values: Sequence[Expr], thread: Expr, threads: int) -> list[Expr]:
    """The sum over a work group of each of some int32 numbers; all of it has to get here."""
    return _totals([team_sum(value) for value in values], "int32", thread, threads)


def group_sums_int64(values: Sequence[Expr], thread: Expr, threads: int) -> list[Expr]:
    """The same of int64 numbers that are not negative and add up to less than 2^58."""
    return _totals([_team_sum_int64(value) for value in values], "int64", thread, threads)


def group_min(value: Expr, thread: Expr, threads: int) -> Expr:
    """The least of each thread's int32 ``value``; the whole work group has to get here."""
    part = -team_max(-value)
    parts, least = shared(threads // TEAM, "int32"), registers(1, "int32")
    barrier()
    with when(thread % TEAM == 0):
        T.buffer_store(parts, part, [thread // TEAM])
    barrier()
    T.buffer_store(least, parts[0], [0])
    for team in range(1, threads // TEAM):
        T.buffer_store(least, T.min(least[0], parts[team]), [0])
    return T.Bind(least[0])


def _team_sum_int64(value: Expr) -> Expr:
    # Shuffles of 64 bits are an extra that not every device has.
    value = held(value, "int64")
    low = team_sum(T.cast(T.bitwise_and(value, T.int64((1 << _LOW_BITS) - 1)), "int32"))
    high = team_sum(T.cast(value >> T.int64(_LOW_BITS), "int32"))
    wide = T.cast(T.reinterpret("uint32", high), "int64") << T.int64(_LOW_BITS)
    return wide + T.cast(low, "int64")


def _totals(sums: Sequence[Expr], dtype: str, thread: Expr, threads: int) -> list[Expr]:
    """Sums of teams added up: a thread for each of them, then all read what it found."""
    teams = threads // TEAM
    parts, totals = shared((len(sums), teams), dtype), shared(len(sums), dtype)
    barrier()  # what an earlier sum left there has been read
    with when(thread % TEAM == 0):
        for i, part in enumerate(sums):
            T.buffer_store(parts, part, [i, thread // TEAM])
    barrier()
    with when(thread < len(sums)):
        total = variable(parts[thread, 0], dtype)
        for team in range(1, teams):
            T.buffer_store(total, total[0] + parts[thread, team], [0])
        T.buffer_store(totals, total[0], [thread])
    barrier()
    return [held(totals[i], dtype) for i in range(len(sums))]


def before(value: Expr, thread: Expr, threads: int) -> tuple[Expr, Expr]:
    """The sum of int32 ``value`` over the threads before this one, and over all; all of them have to get here."""
    parts = shared(threads, "int32")
    barrier()
    T.buffer_store(parts, value, [thread])
    barrier()
    earlier, total = variable(T.int32(0), "int32"), variable(T.int32(0), "int32")
    with T.serial(0, threads) as other:
        part = T.Bind(parts[other])
        T.buffer_store(earlier, earlier[0] + T.Select(other < thread, part, T.int32(0)), [0])
        T.buffer_store(total, total[0] + part, [0])
    return T.Bind(earlier[0]), T.Bind(total[0])
