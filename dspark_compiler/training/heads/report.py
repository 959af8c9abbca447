"""What training tells whoever waits for it."""

from typing import Protocol


class Report(Protocol):
    """See commands/progress.py."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """``done`` of ``total`` steps of a stage."""

    def note(self, text: str) -> None:
        """How the stage goes."""
