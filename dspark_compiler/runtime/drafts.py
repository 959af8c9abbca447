"""Where drafts come from. B: sequences the artifact holds, g: drafts of one."""

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import HeadsInfo
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Anchors, Drafts
from dspark_compiler.runtime.sampling import SamplingInputs
from dspark_compiler.runtime.sequence import SequenceState

_LONGEST_GRAM = 4


class Proposer(Protocol):
    """Drafts what may follow."""

    @property
    def chains(self) -> bool:
        """Whether it can draft after anchors that the host does not know yet."""

    def propose(
        self,
        sequences: Sequence[SequenceState],
        anchors: Anchors,
        uniforms: NDArray[np.float32],
        sampling: SamplingInputs,
    ) -> Drafts:
        """Drafts for these sequences, none for others; uniforms [B,g] in [0, 1), one number a draft."""


class CompiledDrafter:
    """The artifact's own drafter."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @property
    def chains(self) -> bool:
        """See Proposer."""
        return self._executor.chains_rounds

    def propose(
        self,
        sequences: Sequence[SequenceState],
        anchors: Anchors,
        uniforms: NDArray[np.float32],
        sampling: SamplingInputs,
    ) -> Drafts:
        """See Proposer; what it drafts for others is not looked at."""
        return self._executor.draft(anchors, uniforms, sampling)


class PromptLookup:
    """Drafts what followed when the last few tokens came before (n-gram prompt lookup); certain of each draft."""

    chains = False

    def __init__(self, batch: int, block_size: int) -> None:
        self._shape = batch, block_size
        self._indices: WeakKeyDictionary[SequenceState, GramIndex] = WeakKeyDictionary()

    def propose(
        self,
        sequences: Sequence[SequenceState],
        anchors: Anchors,
        uniforms: NDArray[np.float32],
        sampling: SamplingInputs,
    ) -> Drafts:
        """See Proposer; a sequence whose last token is new has none."""
        drafts = Drafts(np.zeros(self._shape, np.int64), np.zeros(self._shape[0], np.int64))
        for sequence in sequences:
            index = self._indices.get(sequence)
            if index is None:
                index = self._indices[sequence] = GramIndex(sequence.prompt)
            index.extend(sequence.tokens[index.size - len(sequence.prompt) :])
            found = index.continuation(self._shape[1])
            drafts.tokens[sequence.row, : len(found)] = found
            drafts.counts[sequence.row] = len(found)
        return drafts


class GramIndex:
    """A text's n-grams of up to 4 tokens, and where each was last followed by something; grows with the text."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    @property
    def size(self) -> int:
        """Tokens of the text."""
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds tokens at the end."""
        for token in tokens:
            end = len(self._tokens)  # what comes before it is now followed by something
            for n in range(1, min(_LONGEST_GRAM, end) + 1):
                self._next[tuple(self._tokens[end - n : end])] = end
            self._tokens.append(token)

    def continuation(self, count: int) -> list[int]:
        """What followed the longest suffix that came before, where it did so last; empty if none did.

        Where that reaches the end of the text, it goes on with itself: what repeats is taken to repeat again.
        """
        end = len(self._tokens)
        for n in range(min(_LONGEST_GRAM, end), 0, -1):
            start = self._next.get(tuple(self._tokens[end - n :]))
            if start is not None:
                period = end - start
                return [self._tokens[start + place % period] for place in range(count)]
        return []


def make_proposer(executor: Executor, heads: HeadsInfo) -> Proposer:
    """The drafter an artifact was compiled with."""
    return PromptLookup(executor.batch, heads.block_size) if heads.type == "ngram" else CompiledDrafter(executor)
