"""AMD's matrix instructions: D[16, 16] = A[16, 16] B[16, 16] + C, by all lanes of a wave.

Numbers of A and B have two bytes, sums four. Which lane has which numbers is said in AMD's ISA documents ("MFMA" of
CDNA 2 and 3, "WMMA" of RDNA 3 and 4): lane l gives row l % 16 of A and column l % 16 of B, some depths of each, and has
column l % 16 of D. The depths a lane gives are the same for A and B, so products do not depend on which they are.
"""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.rocm.architectures import Architecture, Matrix
from dspark_compiler.schedules.tir import Buffer, Expr

SIDE = 16

_MFMA = {"float16": "llvm.amdgcn.mfma.f32.16x16x16f16", "uint16": "llvm.amdgcn.mfma.f32.16x16x16bf16.1k"}
_WMMA = {"float16": "llvm.amdgcn.wmma.f32.16x16x16.f16", "uint16": "llvm.amdgcn.wmma.f32.16x16x16.bf16"}


@dataclass(frozen=True)
class MatrixInstruction:
    """One family's.

    Attributes:
        lanes: of a wave.
        given: numbers of A, and of B, that a lane gives.
        made: numbers of D that a lane has.
    """

    family: Matrix
    lanes: int
    given: int
    made: int

    def depth(self, lane: Expr) -> Expr:
        """The first of the depths, side by side, that a lane gives; on RDNA 3 both halves of a wave give all."""
        return T.int32(0) if self.family == "wmma11" else lane // SIDE * self.given

    def row(self, lane: Expr, number: int) -> Expr:
        """The row of D that one of a lane's numbers is in."""
        if self.family == "wmma11":
            return lane // SIDE + 2 * number
        return lane // SIDE * self.made + number

    def multiply(self, sums: Buffer, index: tuple[int, ...], a: Expr, b: Expr, stored: str, thread: Expr) -> None:
        """sums[index] += A B, vectors of a lane's numbers; ``stored`` is float16, or uint16 for bfloat16's bits."""
        kind = f"float32x{self.made}"
        if self.family == "mfma":
            # No broadcast of A, and lanes of B in their order.
            total = T.call_llvm_pure_intrin(kind, _MFMA[stored], a, b, sums[index], T.int32(0), T.int32(0), T.int32(0))
        else:
            total = T.call_llvm_pure_intrin(kind, _WMMA[stored], a, b, sums[index])
        T.buffer_store(sums, total, list(index))


_FAMILIES = {
    "mfma": MatrixInstruction("mfma", 64, 4, 4),
    "wmma11": MatrixInstruction("wmma11", 32, 16, 8),
    "wmma12": MatrixInstruction("wmma12", 32, 8, 8),
}


def matrix_instruction(arch: Architecture) -> MatrixInstruction:
    """The one an architecture has."""
    return _FAMILIES[arch.matrix]
