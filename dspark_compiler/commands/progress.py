"""Long work, stage by stage: a spinner or bar on a terminal, plain lines elsewhere. Always on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

import click

_NOTE_EVERY = 10.0  # seconds


class Progress:
    """Called by the work as it goes; use as a context manager.

    ``progress("capture")`` begins a stage, and ends the one before; ``progress("tune", 3, 64)`` says how far it is.
    """

    def __init__(self) -> None:
        self._stage: str | None = None
        self._began = 0.0
        self._noted = 0.0

    def __enter__(self) -> Self:
        return self

    def __call__(self, stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """``done`` of ``total`` steps of a stage, and how they go; a total of 0 is an unknown one."""
        if stage != self._stage:
            self._end()
            self._stage, self._began = stage, time.monotonic()
            self._show(stage)
        if total:
            self._advance(done, total)
        if detail:
            self.note(detail)

    def note(self, text: str) -> None:
        """How the stage goes, in a line; elsewhere than on a terminal only now and then."""
        now = time.monotonic()
        if now - self._noted >= _NOTE_EVERY:
            self._noted = now
            click.echo(f"  {text}", err=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end()
        self._close()

    def _end(self) -> None:
        if self._stage is not None:
            self._finished(self._stage, time.monotonic() - self._began)
            self._stage = None

    def _show(self, stage: str) -> None:
        """A stage has begun."""

    def _advance(self, done: int, total: int) -> None:
        """Some of the stage's steps are done."""

    def _finished(self, stage: str, seconds: float) -> None:
        click.echo(f"{stage}: {seconds:.1f} s", err=True)

    def _close(self) -> None:
        """All is over, well or not."""


class _TerminalProgress(Progress):
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._rich = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._rich.start()
        self._task = self._rich.add_task("", total=None)

    def _show(self, stage: str) -> None:
        self._rich.reset(self._task, description=stage, total=None)

    def _advance(self, done: int, total: int) -> None:
        self._rich.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """See Progress.note."""
        self._rich.update(self._task, description=f"{self._stage}: {text}")

    def _finished(self, stage: str, seconds: float) -> None:
        self._rich.console.print(f"{stage:<32} {seconds:7.1f} s", highlight=False)

    def _close(self) -> None:
        self._rich.stop()


def make_progress() -> Progress:
    """The kind of progress that stderr can show."""
    return _TerminalProgress() if sys.stderr.isatty() else Progress()
