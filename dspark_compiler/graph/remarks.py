"""What a rewrite says of itself: what it changed, and what it left alone and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """A rewrite that was made.

    ``where`` is a node of the entry point ``entry`` as it was before, or, where ``entry`` is None, a param, a state or
    an entry point; ``what`` says what was done.
    """

    where: str
    what: str
    entry: str | None = None

    def __str__(self) -> str:
        return _text(self.entry, self.where, self.what)


@dataclass(frozen=True)
class Declined:
    """A rewrite that was not made: where, as in Match, and why."""

    where: str
    reason: str
    entry: str | None = None

    def __str__(self) -> str:
        return _text(self.entry, self.where, self.reason)


def _text(entry: str | None, where: str, text: str) -> str:
    return ": ".join(part for part in (entry, where, text) if part is not None)
