"""The seam every target fills."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dspark_compiler.artifact import TargetInfo
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.layouts import Layouts
from dspark_compiler.schedules.linear_space import LinearSpace
from dspark_compiler.schedules.tune import TuningStep


class Backend(Protocol):
    """Compiles lowered modules for one target and architecture."""

    @property
    def spec(self) -> TargetInfo:
        """The machine that can run what this backend builds."""

    @property
    def target(self) -> Any:
        """The tvm.target.Target."""

    @property
    def linears(self) -> LinearSpace | None:
        """The schedules of packed products; None where there is nothing to choose."""

    def layouts(self, dtype: str) -> Layouts:
        """How weights and states lie where ``dtype`` is computed with."""

    def runs_here(self) -> bool:
        """Whether this machine can run what this backend builds."""

    def schedule(self, module: Any, records: Records) -> Any:
        """Schedules every function of a lowered module that lowering has not scheduled.

        Raises:
            InputError: a file of records that cannot be read.
        """

    def tune(
        self, module: Any, records: Records, bench: Bench, trials: int, progress: Callable[[TuningStep], None]
    ) -> int:
        """Measures schedules on ``bench`` and adds them to the records; returns how many.

        Raises:
            InputError: the records cannot be read or written.
            LoweringError: a default schedule computes something else.
        """

    def build(self, module: Any, library: Path) -> None:
        """Compiles a scheduled IRModule into a shared library.

        Raises:
            BackendUnavailableError: a tool that is needed is not here.
            LoweringError: TVM or a tool refused the module.
        """

    def runtime_libraries(self) -> Sequence[Path]:
        """Runtime libraries an artifact has to carry."""
