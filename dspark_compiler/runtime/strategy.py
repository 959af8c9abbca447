"""How sequences advance between prefill and end; a strategy knows the executor, never text or sampling rules."""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Step
from dspark_compiler.runtime.sampling import SamplingInputs
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
        tokens, positions, lengths, counts = _columns(self._executor.batch, active)
        logits = self._executor.decode(tokens, positions, lengths, counts)
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
        numbers = np.zeros(self._executor.batch, np.float32)
        for sequence in active:
            numbers[sequence.row] = sequence.numbers(1)[0]
        return make_step(self._executor, active, numbers, after)


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


def make_step(
    executor: Executor, active: Sequence[SequenceState], numbers: NDArray[np.float32], after: Step | None
) -> Step:
    """A step for these sequences by numbers [B], after their last tokens, or after those ``after`` will have drawn."""
    tokens, positions, lengths, counts = _columns(executor.batch, active)
    sampling = SamplingInputs.greedy(executor.batch)
    for sequence in active:
        sampling.put(sequence.row, sequence.params)
    later = 0 if after is None else counts
    given = tokens if after is None else after
    return executor.step(given, positions + later, lengths + later, counts, numbers, sampling)


def _columns(batch: int, active: Sequence[SequenceState]) -> NDArray[np.int64]:
    """Tokens, positions, lengths and counts, [4,B]; zeros where there is no sequence."""
    columns = np.zeros((4, batch), np.int64)
    for sequence in active:
        columns[:, sequence.row] = sequence.tokens[-1], sequence.position, sequence.length, 1
    return columns


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
