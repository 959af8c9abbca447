"""What the teams of a work group made of attention, in its shared memory: sums of pairs of teams, to be added up."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import TEAM, registers
from dspark_compiler.schedules.tir import Buffer, Expr

# With up to 255 registers a thread two such work groups fit beside each other, which two of 256 threads do not.
THREADS = 128
TEAMS = THREADS // TEAM
PAIRS = TEAMS // 2

_VECTOR = 4


@dataclass(frozen=True)
class Totals:
    """Of a work group, in shared memory: sums and weights of pairs of teams, relative to a row's maximum; and that."""

    sums: Buffer
    weights: Buffer
    peaks: Buffer

    def of(self, i: Expr, d: Expr) -> tuple[Expr, Expr, Expr]:
        """Element d of row i of the work group: its sum, the sum of weights, and the maximum they are relative to."""
        weight, value = registers(1), registers(1)
        weights = registers(PAIRS)
        for pair in range(0, PAIRS, _VECTOR):
            copy(weights, (pair,), self.weights, (i, T.int32(pair)), _VECTOR)
        T.buffer_store(weight, weights[0], [0])
        T.buffer_store(value, self.sums[0, i, d], [0])
        for pair in range(1, PAIRS):
            T.buffer_store(weight, weight[0] + weights[pair], [0])
            T.buffer_store(value, value[0] + self.sums[pair, i, d], [0])
        return value[0], weight[0], self.peaks[i, 0]
