"""AMD's matrix instructions done by lanes that show each other their numbers: for devices that have none."""

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.rocm.matrix_instructions import SIDE, MatrixInstruction
from dspark_compiler.schedules.simt.stored import widen
from dspark_compiler.schedules.simt.threads import barrier, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

_THREADS = 256


@dataclass(frozen=True)
class Emulated(MatrixInstruction):
    """The same layout of numbers in lanes, other instructions."""

    def multiply(self, sums: Buffer, index: tuple[int, ...], a: Expr, b: Expr, stored: str, thread: Expr) -> None:
        groups = SIDE // self.given  # of lanes that give different depths; the rest of a wave says the same again
        shown = shared(_THREADS // self.lanes * SIDE * SIDE, stored)
        lane, wave = T.Bind(thread % self.lanes), T.Bind(thread // self.lanes)
        rows = [T.Bind(self.row(lane, number)) for number in range(self.made)]
        left, right, made = registers((self.made, SIDE)), registers(SIDE), registers(self.made)

        def show(vector: Expr) -> None:
            barrier()
            with when(lane < SIDE * groups):
                for element in range(self.given):
                    place = (wave * SIDE + lane % SIDE) * SIDE + lane // SIDE * self.given + element
                    T.buffer_store(shown, tirx.Shuffle([vector], [element]), [place])
            barrier()

        show(a)
        with T.serial(0, SIDE) as k:
            for number, row in enumerate(rows):
                T.buffer_store(left, widen(shown[(wave * SIDE + row) * SIDE + k], stored), [number, k])
        show(b)
        with T.serial(0, SIDE) as k:
            T.buffer_store(right, widen(shown[(wave * SIDE + lane % SIDE) * SIDE + k], stored), [k])
        for number in range(self.made):
            T.buffer_store(made, tirx.Shuffle([sums[index]], [number]), [number])
        with T.serial(0, SIDE) as k:
            for number in range(self.made):
                T.buffer_store(made, T.fma(left[number, k], right[k], made[number]), [number])
        T.buffer_store(sums, tirx.Shuffle([made[n] for n in range(self.made)], list(range(self.made))), list(index))
