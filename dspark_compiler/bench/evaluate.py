"""The options of ``dspark eval``, and its tasks run on one artifact."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.tasks import TASKS
from dspark_compiler.bench.tasks.base import Context, Progress
from dspark_compiler.bench.tasks.reference import Reference
from dspark_compiler.errors import InputError


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate.

    ``data`` are files for all tasks, or for one as ``TASK=FILE``, and ``limits`` numbers likewise. ``length`` is that
    of a Context;
    ``against`` is the artifact that the agreement task compares with instead of the source model.

    Raises:
        InputError: no task or an unknown one, or an option that none of the tasks would look at.
    """

    artifact: Path
    tasks: tuple[str, ...]
    data: tuple[str, ...] = ()
    model: str | None = None
    limits: tuple[str, ...] = ()
    length: int | None = None
    threads: int | None = None
    against: Path | None = None
    verify: bool = True
    device: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError(f"--task: not given; one or more of {', '.join(TASKS)}")
        for task in self.tasks:
            if task not in TASKS:
                raise InputError(f"--task {task}: not one of {', '.join(TASKS)}")
            if self.tasks.count(task) > 1:
                raise InputError(f"--task {task}: given twice")
        if self.against is not None and "agreement" not in self.tasks:
            raise InputError(f"--against {self.against}: is for --task agreement, which is not asked for")
        for option, items in (("--data", self.data), ("--limit", self.limits)):
            for item in items:
                only, _ = _split(item)
                if only is not None and only not in self.tasks:
                    raise InputError(f"{option} {item}: is for --task {only}, which is not asked for")
        for task in self.tasks:
            self.limit_of(task)

    def limit_of(self, task: str) -> int | None:
        """The most windows, prompts or passages of a task; None: all.

        Raises:
            InputError: not a number.
        """
        wanted = [value for only, value in map(_split, self.limits) if only in (None, task)]
        try:
            return int(wanted[-1]) if wanted else None
        except ValueError:
            raise InputError(f"--limit {wanted[-1]}: is not a number") from None

    def data_of(self, task: str) -> tuple[Path, ...]:
        """The files a task reads; none: what is built in."""
        return tuple(Path(value) for only, value in map(_split, self.data) if only in (None, task))

    @cached_property
    def opened(self) -> Artifact:
        """The artifact, checked."""
        return Artifact.open(self.artifact, verify=self.verify, device=self.device)

    @cached_property
    def reference(self) -> Reference | None:
        """The artifact of ``against``, checked."""
        if self.against is None:
            return None
        return Reference(Artifact.open(self.against, verify=self.verify, device=self.device), self.threads)


def evaluate(
    config: EvalConfig,
    artifact: Artifact,
    progress: Progress,
    *,
    reference: Reference | None = None,
    beside_eager: bool = True,
) -> dict[str, dict[str, Any]]:
    """Runs the tasks on an artifact, which need not be the config's; results by task.

    Raises:
        InputError: what a task cannot work with.
    """
    contexts = {
        task: Context(
            artifact,
            config.data_of(task),
            model=config.model,
            limit=config.limit_of(task),
            threads=config.threads,
            progress=progress,
            length=config.length,
            reference=reference,
            beside_eager=beside_eager,
        )
        for task in config.tasks
    }
    return {task: TASKS[task].run(context) for task, context in contexts.items()}


def _split(item: str) -> tuple[str | None, str]:
    """The task a ``TASK=VALUE`` is for, None for a plain VALUE, and the value."""
    before, equals, after = item.partition("=")
    return (before, after) if equals and before in TASKS else (None, item)
