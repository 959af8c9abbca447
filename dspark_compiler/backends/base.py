"""The seam every target fills."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dspark_compiler.artifact import TargetInfo
from dspark_compiler.schedules.isa import VectorIsa


class Backend(Protocol):
    """Compiles lowered modules for one target and architecture."""

    @property
    def spec(self) -> TargetInfo:
        """The machine that can run what this backend builds."""

    @property
    def isa(self) -> VectorIsa:
        """Vector width kernels are shaped for."""

    @property
    def target(self) -> Any:
        """The tvm.target.Target."""

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""

    def build(self, module: Any, library: Path) -> None:
        """Compiles a scheduled IRModule into a shared library."""

    def runtime_libraries(self) -> Sequence[Path]:
        """TVM runtime libraries an artifact has to carry."""
