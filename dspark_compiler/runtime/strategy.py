"""How sequences advance between prefill and end; a strategy knows the executor, never text or sampling rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Step
from dspark_compiler.runtime.sampling import SamplingInputs
from dspark_compiler.runtime.sequence import SequenceState


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
        self._ahead: _Ahead | None = None

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
        ahead, self._ahead = self._ahead, None
        if ahead is None or not set(active) <= ahead.sequences:
            ahead = self._begin(active, None)
        going_on = [sequence for sequence in active if sequence.remaining > 1]
        if going_on:
            self._ahead = self._begin(going_on, ahead.step)
        following = ahead.step.following
        return {sequence.row: int(following[sequence.row]) for sequence in active}

    def _begin(self, active: Sequence[SequenceState], previous: Step | None) -> "_Ahead":
        """A step after what ``previous`` will have drawn, or after the tokens there are."""
        batch = self._executor.batch
        tokens, positions, lengths, counts = _columns(batch, active)
        sampling, numbers = SamplingInputs.greedy(batch), np.zeros(batch, np.float32)
        for sequence in active:
            sampling.put(sequence.row, sequence.params)
            numbers[sequence.row] = sequence.numbers(1)[0]
        later = 0 if previous is None else counts
        step = self._executor.step(
            tokens if previous is None else previous, positions + later, lengths + later, counts, numbers, sampling
        )
        return _Ahead(frozenset(active), step)


@dataclass(frozen=True)
class _Ahead:
    """A step that nobody has read yet, and the sequences that take part."""

    sequences: frozenset[SequenceState]
    step: Step


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
