"""How sequences advance between prefill and end; a strategy knows the executor, never text or sampling rules."""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Step
from dspark_compiler.runtime.seats import Seating, Seats
from dspark_compiler.runtime.sequence import SequenceState

Made = TypeVar("Made")


class Strategy(Protocol):
    """One way of decoding."""

    def round(self, active: Sequence[SequenceState]) -> None:
        """Advances each of these unfinished sequences by at least one confirmed token."""


class Autoregressive:
    """One token a round, for all sequences together.

    Where the artifact draws tokens itself, the next step is under way before the host reads what this one drew: that
    is wasted for a sequence which turns out to have ended.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._seating = Seating(executor.batch)
        self._ahead: Ahead[Step] = Ahead()

    def round(self, active: Sequence[SequenceState]) -> None:
        """See Strategy."""
        if self._executor.draws and all(sequence.params.repetition_penalty == 1 for sequence in active):
            following = self._drawn(active)
        else:
            following = self._sampled(active)
        for sequence in active:
            sequence.length += 1
            sequence.position += 1
            sequence.rounds += 1
            sequence.take(following[sequence.row])

    def _sampled(self, active: Sequence[SequenceState]) -> dict[int, int]:
        """The next token by row, drawn by the host."""
        seats = self._seating.of(active)
        tokens, positions, lengths = seats.columns()
        logits = self._executor.decode(tokens, positions, lengths, seats.counts)
        return {sequence.row: sequence.draw(logits[sequence.row]) for sequence in active}

    def _drawn(self, active: Sequence[SequenceState]) -> dict[int, int]:
        """The next token by row, drawn by the artifact."""
        step = self._ahead.pop(active) or self._make(active, None)
        going_on = [sequence for sequence in active if sequence.remaining > 1]
        if going_on:
            self._ahead.keep(going_on, self._make(going_on, step))
        following = step.following
        return {sequence.row: int(following[sequence.row]) for sequence in active}

    def _make(self, active: Sequence[SequenceState], after: Step | None) -> Step:
        seats = self._seating.of(active)
        return make_step(self._executor, seats, seats.numbers().following, after)


class Ahead(Generic[Made]):
    """What was made before the tokens it follows were known to the host, until somebody wants it."""

    def __init__(self) -> None:
        self._sequences: frozenset[SequenceState] = frozenset()
        self._made: Made | None = None

    def keep(self, sequences: Sequence[SequenceState], made: Made) -> None:
        """What these take part in next."""
        self._sequences, self._made = frozenset(sequences), made

    def is_for(self, active: Sequence[SequenceState]) -> bool:
        """Whether there is something that all of these take part in."""
        return self._made is not None and self._sequences.issuperset(active)

    def pop(self, active: Sequence[SequenceState]) -> Made | None:
        """It, if it is for these; it is gone then, and of no use otherwise."""
        made = self._made if self.is_for(active) else None
        self._sequences, self._made = frozenset(), None
        return made


def make_step(executor: Executor, seats: Seats, numbers: NDArray[np.float32], after: Step | None) -> Step:
    """A step by numbers [B,1], after the sequences' last tokens, or after those ``after`` will have drawn."""
    tokens, positions, lengths = seats.columns()
    if after is None:
        return executor.step(tokens, positions, lengths, seats.counts, numbers, seats.sampling)
    return executor.step(after, positions + seats.counts, lengths + seats.counts, seats.counts, numbers, seats.sampling)


def run(executor: Executor, strategy: Strategy, sequences: Sequence[SequenceState]) -> Iterator[None]:
    """Generates all sequences to their ends; yields whenever there may be new text.

    Prompts go in one after the other, whole; then all unfinished sequences advance together.
    """
    for sequence in sequences:
        logits = executor.prefill(sequence.row, sequence.prompt, sequence.position, sequence.length)
        sequence.length += len(sequence.prompt)
        sequence.position += len(sequence.prompt)
        sequence.take(sequence.draw(logits))
        yield
    while active := [sequence for sequence in sequences if sequence.finish_reason is None]:
        strategy.round(active)
        yield
