"""What the teams of a work group made of attention, added up: each thread has some elements of every row."""

from collections.abc import Callable
from contextlib import nullcontext

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import TEAM, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

# With up to 255 registers a thread two such work groups fit beside each other, which two of 256 threads do not.
THREADS = 128
TEAMS = THREADS // TEAM

_VECTOR = 4


class Totals:
    """Of ``rows`` rows of ``dim`` elements. Made at the top of a kernel.

    There is room on the chip for one row at a time: a device may have no more of it than a product beside this leaves.

    Attributes:
        sums: those of each team, float32 [TEAMS, dim] in shared memory, of the row that is being added up.
        weights: float32 [TEAMS], likewise.
        peaks: the maxima that a team's sums and weight are relative to, likewise.
    """

    def __init__(self, rows: int, dim: int) -> None:
        self.sums, self.weights, self.peaks = shared((TEAMS, dim)), shared(TEAMS), shared(TEAMS)
        self._rows, self._dim, self._turns = rows, dim, -(-dim // THREADS)
        self._results = registers((rows, self._turns, 3))

    def add_up(self, i: int, thread: Expr) -> None:
        """A thread's elements of row ``i``, whose teams have all put theirs."""
        for turn in range(self._turns):
            place = T.Bind(T.min(turn * THREADS + thread, self._dim - 1))
            for number, value in enumerate(self._sum(place)):
                T.buffer_store(self._results, value, [i, turn, number])

    def for_elements(self, thread: Expr, emit: Callable[[int, Expr, Expr, Expr, Expr], None]) -> None:
        """Calls emit(i, d, sum, weight, maximum): element d of row i, relative to the row's maximum."""
        for i in range(self._rows):
            for turn in range(self._turns):
                d = T.Bind(turn * THREADS + thread)
                with when(d < self._dim) if self._dim % THREADS else nullcontext():
                    emit(i, d, *(self._results[i, turn, number] for number in range(3)))

    def _sum(self, d: Expr) -> tuple[Expr, Expr, Expr]:
        peaks, weights = self._of_teams(self.peaks), self._of_teams(self.weights)
        peak, weight, value, factors = registers(1), registers(1), registers(1), registers(TEAMS)
        T.buffer_store(peak, peaks[0], [0])
        for team in range(1, TEAMS):
            T.buffer_store(peak, T.max(peak[0], peaks[team]), [0])
        for team in range(TEAMS):
            T.buffer_store(factors, T.exp(peaks[team] - peak[0]), [team])
        T.buffer_store(weight, weights[0] * factors[0], [0])
        T.buffer_store(value, self.sums[0, d] * factors[0], [0])
        for team in range(1, TEAMS):
            T.buffer_store(weight, T.fma(weights[team], factors[team], weight[0]), [0])
            T.buffer_store(value, T.fma(self.sums[team, d], factors[team], value[0]), [0])
        return value[0], weight[0], peak[0]

    def _of_teams(self, source: Buffer) -> Buffer:
        target = registers(TEAMS)
        for team in range(0, TEAMS, _VECTOR):
            copy(target, (team,), source, (T.int32(team),), _VECTOR)
        return target
