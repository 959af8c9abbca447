"""The seam every target fills."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dspark_compiler.schedules.isa import VectorIsa


@dataclass(frozen=True)
class TargetSpec:
    """What an artifact says of the machine it is for."""

    kind: str
    arch: str
    triple: str
    cpu_features: tuple[str, ...]


class Backend(Protocol):
    """Compiles lowered modules for one target and architecture."""

    @property
    def spec(self) -> TargetSpec:
        """The machine that can run what this backend builds."""

    @property
    def isa(self) -> VectorIsa:
        """Vector width kernels are shaped for."""

    @property
    def target(self) -> Any:
        """The tvm.target.Target."""

    def build(self, module: Any, library: Path) -> None:
        """Compiles a scheduled IRModule into a shared library."""

    def runtime_libraries(self) -> Sequence[Path]:
        """TVM runtime libraries an artifact has to carry."""
