"""Steps and rounds on nobody's behalf: greedy, all tokens the same, no draft stays unless it is sure to.

What sequences the executor holds is overwritten. B: sequences it holds, g: drafts of one.
"""

import numpy as np

from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Anchors, Drafts, Step, Verdict
from dspark_compiler.runtime.sampling import SamplingInputs


class DryRounds:
    """All sequences of an executor take part, equally long."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sampling = SamplingInputs.of(executor.batch, {})
        self._zeros = np.zeros(executor.batch, np.int64)

    def prefill(self, tokens: int) -> None:
        """Begins each sequence with so many."""
        for row in range(self._executor.batch):
            self._executor.prefill(row, [0] * tokens, 0, 0)

    def step(self, length: int, after: Step | None = None) -> Step | None:
        """A plain step of sequences of this length, by what ``after`` drew; None: the host has its logits."""
        lengths, counts = self._zeros + length, self._zeros + 1
        if not self._executor.draws:
            self._executor.decode(self._zeros, lengths, lengths, counts)
            return None
        numbers = np.zeros((self._executor.batch, 1), np.float32)
        given = self._zeros if after is None else after
        return self._executor.step(given, lengths, lengths, counts, numbers, self._sampling)

    def anchors(self, length: int) -> Anchors:
        """Where a round of sequences of this length begins."""
        return Anchors(self._zeros, self._zeros + length, self._zeros + length)

    def draft(self, anchors: Anchors) -> Drafts:
        """A block of the artifact's drafter, or of zeros where it has none."""
        executor = self._executor
        if not executor.block_size:
            widest = executor.round_widths[-1] - 1
            return Drafts(np.zeros((executor.batch, widest), np.int64), np.full(executor.batch, widest))
        return executor.draft(anchors, np.zeros((executor.batch, executor.block_size), np.float32), self._sampling)

    def speculate(self, anchors: Anchors, drafts: Drafts, width: int) -> Verdict:
        """Looks at the first width - 1 drafts."""
        # No draft stays with a number of 1 unless it is sure to.
        uniforms = np.ones((self._executor.batch, drafts.counts.max() + 1), np.float32)
        uniforms[:, -1] = 0
        return self._executor.speculate(anchors, drafts, self._zeros + width - 1, uniforms, self._sampling)
