"""AMD's architectures that code is made for, and in what they differ for kernels."""

from dataclasses import dataclass
from typing import Literal

from dspark_compiler.errors import InputError

Matrix = Literal["mfma", "wmma11", "wmma12"]


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: as LLVM and HIP spell it.
        wave: threads that run together.
        matrix: the family of its matrix instructions.
        gpus: some that have it, for people.
    """

    name: str
    wave: int
    matrix: Matrix
    gpus: str

    @property
    def asks_ahead(self) -> bool:
        """Whether LLVM moves the loads of a long block to its beginning, into more registers than there are."""
        return self.wave == 32

    @property
    def isa_version(self) -> int:
        """What the device libraries know it by: 9010 for gfx90a, 11000 for gfx1100."""
        major, minor, stepping = self.name[3:-2], self.name[-2], self.name[-1]
        return int(major) * 1000 + int(minor) * 100 + int(stepping, 16)


ARCHITECTURES = {
    arch.name: arch
    for arch in (
        Architecture("gfx90a", 64, "mfma", "MI210, MI250"),
        Architecture("gfx942", 64, "mfma", "MI300, MI325"),
        Architecture("gfx1100", 32, "wmma11", "RX 7900"),
        Architecture("gfx1201", 32, "wmma12", "RX 9070"),
    )
}


def find_architecture(name: str) -> Architecture:
    """The architecture of a name.

    Raises:
        InputError: there is none.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(f"{arch.name} ({arch.gpus})" for arch in ARCHITECTURES.values())
        raise InputError(f"--arch {name}: the rocm target knows {known}")
    return ARCHITECTURES[name]
