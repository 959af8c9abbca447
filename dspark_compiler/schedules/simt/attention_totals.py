"""What the teams of a work group made of attention, in its shared memory, to be added up."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import TEAM, registers
from dspark_compiler.schedules.tir import Buffer, Expr

# With up to 255 registers a thread two such work groups fit beside each other, which two of 256 threads do not.
THREADS = 128
TEAMS = THREADS // TEAM

_VECTOR = 4


@dataclass(frozen=True)
class Totals:
    """Of a work group, in shared memory: sums [TEAMS, rows, Dv], weights and maxima [rows, TEAMS] of its teams.

    A team's sums and weight are relative to its maximum.
    """

    sums: Buffer
    weights: Buffer
    peaks: Buffer

    def of(self, i: Expr, d: Expr) -> tuple[Expr, Expr, Expr]:
        """Element d of row i of the work group: its sum, the sum of weights, and the maximum they are relative to."""
        peaks, weights = self._of_teams(self.peaks, i), self._of_teams(self.weights, i)
        peak, weight, value, factor = registers(1), registers(1), registers(1), registers(TEAMS)
        T.buffer_store(peak, peaks[0], [0])
        for team in range(1, TEAMS):
            T.buffer_store(peak, T.max(peak[0], peaks[team]), [0])
        for team in range(TEAMS):
            T.buffer_store(factor, T.exp(peaks[team] - peak[0]), [team])
        T.buffer_store(weight, weights[0] * factor[0], [0])
        T.buffer_store(value, self.sums[0, i, d] * factor[0], [0])
        for team in range(1, TEAMS):
            T.buffer_store(weight, T.fma(weights[team], factor[team], weight[0]), [0])
            T.buffer_store(value, T.fma(self.sums[team, i, d], factor[team], value[0]), [0])
        return value[0], weight[0], peak[0]

    def _of_teams(self, source: Buffer, i: Expr) -> Buffer:
        target = registers(TEAMS)
        for team in range(0, TEAMS, _VECTOR):
            copy(target, (team,), source, (i, T.int32(team)), _VECTOR)
        return target
