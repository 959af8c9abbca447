"""Matrices of 16 x 16 or 16 x 8 numbers that a subgroup of 32 invocations holds together, where a device has them.

Which invocation holds which element is not said, so all that can be done is to fill, load, store and multiply them.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import TEAM, of_lane_apart
from dspark_compiler.schedules.tir import Buffer, Expr

SIDE = 16
FEW = 8  # columns of the narrower ones
SUBGROUP = 32
HAS_MATRICES = (
    "dspark.vulkan.has_matrices"  # of the runtime: columns, bytes of shared memory -> whether the device has both
)
FILL, LOAD, STORE, MULTIPLY_ADD, ADD = (
    f"dspark_matrix_{name}" for name in ("fill", "load", "store", "multiply_add", "add")
)

# TVM's names of fragments that are eight columns wide; they take what a load gives, so any depth.
_RIGHT = {SIDE: "wmma.matrix_b", FEW: "m16n8k8.matrixB"}
_SUMS = {SIDE: "wmma.accumulator", FEW: "m16n8k8.matrixC"}
_VECTOR = 4  # elements; what an address on the chip is a multiple of
_ACCESS = 8  # elements that a device reads at once


class Matrices:
    """The instructions of cooperative matrices; D = A B + C with A and B float16, sums float32.

    B and C have ``columns``, A always sixteen.
    """

    def __init__(self, columns: int = SIDE) -> None:
        self._columns = columns

    def left(self, count: int) -> Buffer:
        """Matrices A, whose rows lie side by side in memory."""
        return T.alloc_buffer((count, SIDE * SIDE), "float16", scope="wmma.matrix_a")

    def right(self, count: int) -> Buffer:
        """Matrices B, whose columns do."""
        return T.alloc_buffer((count, SIDE * self._columns), "float16", scope=_RIGHT[self._columns])

    def sums(self, count: int) -> Buffer:
        """Matrices C, all zero."""
        sums = T.alloc_buffer((count, SIDE * self._columns), "float32", scope=_SUMS[self._columns])
        for number in range(count):
            T.evaluate(T.call_extern("void", FILL, _matrix(sums, number), T.float32(0.0)))
        return sums

    def load(self, target: Buffer, number: int, tile: Buffer, start: Expr, stride: int) -> None:
        """Reads a matrix from the work group's memory: lines of neighbouring numbers, ``stride`` apart."""
        T.evaluate(T.call_extern("void", LOAD, _matrix(target, number), _line(tile, start), T.int32(stride)))

    def load_tile(self, target: Buffer, number: int, stored: Buffer, row: Expr, column: Expr) -> None:
        """Reads a matrix from a weight in tiles (simt/weights.py): that which begins at a row and a column."""
        address = T.address_of(stored[row, T.ramp(column * SIDE, 1, _ACCESS)])
        T.evaluate(T.call_extern("void", LOAD, _matrix(target, number), address, T.int32(SIDE)))

    def multiply(self, sums: Buffer, number: int, left: Buffer, i: int, right: Buffer, j: int) -> None:
        """sums[number] += left[i] right[j]."""
        factors = (_matrix(left, i), _matrix(right, j))
        T.evaluate(T.call_extern("void", MULTIPLY_ADD, _matrix(sums, number), *factors))

    def add(self, sums: Buffer, number: int, other: int) -> None:
        """sums[number] += sums[other]."""
        T.evaluate(T.call_extern("void", ADD, _matrix(sums, number), _matrix(sums, other)))

    def store(self, tile: Buffer, start: Expr, stride: int, sums: Buffer, number: int) -> None:
        """Writes a matrix of sums to the work group's memory, row by row."""
        T.evaluate(T.call_extern("void", STORE, _line(tile, start), _matrix(sums, number), T.int32(stride)))

    def over_teams(self, value: Expr) -> Expr:
        """The sum of what the same lane of each team of a subgroup has."""
        distance = TEAM
        while distance < SUBGROUP:
            value, distance = T.Bind(value + of_lane_apart(value, distance, SUBGROUP)), 2 * distance
        return value

    def meet(self) -> None:
        """All invocations of a subgroup get here before one goes on, and see what was written."""
        T.evaluate(T.tvm_storage_sync("warp"))


def _matrix(matrices: Buffer, number: int) -> Expr:
    return T.address_of(matrices[number, 0])


def _line(tile: Buffer, start: Expr) -> Expr:
    return T.address_of(tile[T.ramp(start, 1, _VECTOR)])
