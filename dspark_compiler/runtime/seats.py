"""Sequences that go on together, and what stays the same from round to round as long as they do.

B: sequences the artifact holds, g: drafts of one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.sampling import SamplingInputs
from dspark_compiler.runtime.sequence import SequenceState


class Numbers(NamedTuple):
    """Random numbers of a round, in [0, 1).

    Attributes:
        drafting: one to draw each draft, [B,g].
        judging: one to judge each, and one for the token that follows, [B,g+1].
        following: the last of these, [B,1].
    """

    drafting: NDArray[np.float32]
    judging: NDArray[np.float32]
    following: NDArray[np.float32]


class Seats:
    """What entry points are told of some sequences besides where they are.

    Attributes:
        sequences: these.
        sampling: their settings.
        counts: 1 for each of them, 0 where there is none; int32 [B].
    """

    def __init__(self, batch: int, block_size: int, sequences: Sequence[SequenceState]) -> None:
        """``block_size`` is g."""
        self.sequences = tuple(sequences)
        self.sampling = SamplingInputs.of(batch, {each.row: each.params for each in sequences})
        self.counts = np.zeros(batch, np.int32)
        self.counts[[each.row for each in sequences]] = 1
        self.counts.flags.writeable = False
        self._block_size = block_size
        self._drawing = [each for each in sequences if each.params.temperature and each.params.repetition_penalty == 1]
        zeros = self._zeros()
        zeros.flags.writeable = False
        self._nothing = self._split(zeros)

    def numbers(self) -> Numbers:
        """Those of the next round; the very same zeros each time where no token depends on them."""
        if not self._drawing:
            return self._nothing
        made = self._zeros()
        for each in self._drawing:
            made[each.row] = each.numbers(made.shape[1])
        return self._split(made)

    def columns(self) -> NDArray[np.int64]:
        """Last tokens, positions and lengths, [3,B]; zeros where there is no sequence."""
        columns = np.zeros((3, len(self.counts)), np.int64)
        for each in self.sequences:
            columns[:, each.row] = each.tokens[-1], each.position, each.length
        return columns

    def _zeros(self) -> NDArray[np.float32]:
        return np.zeros((len(self.counts), 2 * self._block_size + 1), np.float32)

    def _split(self, made: NDArray[np.float32]) -> Numbers:
        return Numbers(made[:, : self._block_size], made[:, self._block_size :], made[:, -1:])


class Seating:
    """Seats of the sequences that took part last, for as long as they are the same."""

    def __init__(self, batch: int, block_size: int = 0) -> None:
        self._sizes = batch, block_size
        self._last = Seats(*self._sizes, ())

    def of(self, sequences: Sequence[SequenceState]) -> Seats:
        """Their seats."""
        if self._last.sequences != tuple(sequences):
            self._last = Seats(*self._sizes, sequences)
        return self._last
