"""What a kernel template must know of a CPU: vector width and register count."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VectorIsa:
    """float32 lanes of one vector register, and how many registers there are."""

    lanes: int
    registers: int

    @property
    def panel(self) -> int:
        """Output features a packed weight panel holds: two registers, so that one load serves two accumulators."""
        return 2 * self.lanes

    @property
    def max_rows(self) -> int:
        """Rows of the register tile: accumulators take 3/4 of the registers, weights and broadcasts the rest."""
        return self.registers * 3 // 4 // 2


AVX512 = VectorIsa(lanes=16, registers=32)
AVX2 = VectorIsa(lanes=8, registers=16)
NEON = VectorIsa(lanes=4, registers=32)
SSE = VectorIsa(lanes=4, registers=16)
