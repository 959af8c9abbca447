"""How sequences advance between prefill and end; a strategy knows the executor, never text or sampling rules."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.sequence import SequenceState


class Strategy(Protocol):
    """One way of decoding."""

    def round(self, active: Sequence[SequenceState]) -> None:
        """Advances each of these unfinished sequences by at least one confirmed token."""


class Autoregressive:
    """One token a round, for all sequences together."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def round(self, active: Sequence[SequenceState]) -> None:
        """See Strategy."""
        tokens, positions, lengths, counts = np.zeros((4, self._executor.batch), dtype=np.int64)
        for sequence in active:
            tokens[sequence.row] = sequence.tokens[-1]
            positions[sequence.row] = sequence.position
            lengths[sequence.row] = sequence.length
            counts[sequence.row] = 1
        logits = self._executor.decode(tokens, positions, lengths, counts)
        for sequence in active:
            sequence.length += 1
            sequence.position += 1
            sequence.rounds += 1
            sequence.take(sequence.draw(logits[sequence.row]))


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
