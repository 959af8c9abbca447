"""Grids, work groups, and what their invocations do together.

Kernels count on one thing of a device's subgroups: that eight invocations in a row, from a multiple of eight on, lie
in the same one. Such eight are a team here. All else that a work group does together goes through its shared memory.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.threads import array, barrier, launch
from dspark_compiler.schedules.tir import Buffer, Expr

__all__ = [
    "TEAM",
    "barrier",
    "group_max",
    "group_sum",
    "launch",
    "of_lane_apart",
    "registers",
    "shared",
    "team_max",
    "team_sum",
    "team_sums",
]

TEAM = 8


def registers(shape: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """An array private to a thread; index it with constants, or it leaves the registers."""
    return array(shape, dtype, "local")


def shared(shape: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """An array of the work group's."""
    return array(shape, dtype, "shared")


def team_sum(value: Expr) -> Expr:
    """The sum over a team, the same bits in all of it."""
    return _over_team(value, lambda a, b: a + b)


def team_sums(values: Sequence[Expr], lane: Expr) -> Expr:
    """In lane n of a team the sum of number n of up to ``TEAM`` values; elsewhere nothing of use.

    The bits are those of ``team_sum``, in a third of its shuffles: of each two values a lane goes on with one.
    """
    left, distance = [T.Bind(value) for value in values], TEAM // 2
    while distance:
        upper = T.Bind(T.bitwise_and(lane, T.int32(distance)) != 0)
        pairs = list(zip_longest(left[:distance], left[distance:]))
        left = [_sum_of_one(low, high, upper, distance) for low, high in pairs]
        distance //= 2
    return left[0]


def of_lane_apart(value: Expr, distance: int, lanes: int = TEAM) -> Expr:
    """What the lane ``distance`` away has, a power of two, of ``lanes`` that lie in one subgroup."""
    return T.tvm_warp_shuffle_xor(T.uint32(0), value, T.int32(distance), T.int32(lanes), T.int32(lanes))


def team_max(value: Expr) -> Expr:
    """The greatest of a team."""
    return _over_team(value, T.max)


def group_sum(value: Expr, thread: Expr, threads: int) -> Expr:
    """The sum over a work group of ``threads``; all of it has to get here."""
    return _over_group(value, thread, threads, team_sum, lambda a, b: a + b)


def group_max(value: Expr, thread: Expr, threads: int) -> Expr:
    """The greatest of a work group, likewise."""
    return _over_group(value, thread, threads, team_max, T.max)


def _over_team(value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    value, distance = T.Bind(value), TEAM // 2
    while distance:
        value, distance = T.Bind(combine(value, of_lane_apart(value, distance))), distance // 2
    return value


def _sum_of_one(low: Expr, high: Expr | None, upper: Expr, distance: int) -> Expr:
    """Two lanes' sum of one of two values: of ``high`` in the ``upper`` lane, of ``low`` in the other."""
    if high is None:
        return T.Bind(low + of_lane_apart(low, distance))
    own, given = T.Bind(T.Select(upper, high, low)), T.Bind(T.Select(upper, low, high))
    return T.Bind(own + of_lane_apart(given, distance))


def _over_group(
    value: Expr,
    thread: Expr,
    threads: int,
    over_team: Callable[[Expr], Expr],
    combine: Callable[[Expr, Expr], Expr],
) -> Expr:
    value = over_team(value)
    teams = threads // TEAM
    if teams == 1:
        return value
    parts = shared(teams)
    barrier()  # what an earlier reduction left there has been read
    with T.If(thread % TEAM == 0), T.Then():
        T.buffer_store(parts, value, [thread // TEAM])
    barrier()
    total = parts[0]
    for team in range(1, teams):
        total = T.Bind(combine(total, parts[team]))
    return T.Bind(total)
