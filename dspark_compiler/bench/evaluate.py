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

    ``data`` are files for all tasks, or for one as ``TASK=FILE``. ``limit`` and ``length`` are those of a Context;
    ``against`` is the artifact that the agreement task compares with instead of the source model.

    Raises:
        InputError: no task or an unknown one, or an option that none of the tasks would look at.
    """

    artifact: Path
    tasks: tuple[str, ...]
    data: tuple[str, ...] = ()
    model: str | None = None
    limit: int | None = None
    length: int | None = None
    threads: int | None = None
    against: Path | None = None
    verify: bool = True

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
        for item in self.data:
            only, _ = _data_item(item)
            if only is not None and only not in self.tasks:
                raise InputError(f"--data {item}: is for --task {only}, which is not asked for")

    def data_of(self, task: str) -> tuple[Path, ...]:
        """The files a task reads; none: what is built in."""
        items = (_data_item(item) for item in self.data)
        return tuple(path for of, path in items if of in (None, task))

    @cached_property
    def opened(self) -> Artifact:
        """The artifact, checked."""
        return Artifact.open(self.artifact, verify=self.verify)

    @cached_property
    def reference(self) -> Reference | None:
        """The artifact of ``against``, checked."""
        if self.against is None:
            return None
        return Reference(Artifact.open(self.against, verify=self.verify), self.threads)


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
            limit=config.limit,
            threads=config.threads,
            progress=progress,
            length=config.length,
            reference=reference,
            beside_eager=beside_eager,
        )
        for task in config.tasks
    }
    return {task: TASKS[task].run(context) for task, context in contexts.items()}


def _data_item(item: str) -> tuple[str | None, Path]:
    """The task a ``TASK=FILE`` is for, None for a plain FILE, and the file."""
    before, equals, after = item.partition("=")
    return (before, Path(after)) if equals and before in TASKS else (None, Path(item))
