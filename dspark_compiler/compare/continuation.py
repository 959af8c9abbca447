"""Greedy continuations of one compiled model, and what another makes of them. No torch needed. V: vocabulary."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.compare.compiled import decode_first
from dspark_compiler.runtime.executor import Executor

# A token at least half as likely as the likeliest: taking it instead is a different answer, not a worse one.
NEAR_RATIO = 0.5


@dataclass(frozen=True)
class Continuation:
    """A prompt and the greedy tokens that follow it.

    ``near[i]`` holds all tokens that were at least NEAR_RATIO times as likely as ``tokens[i]``, itself included.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    near: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class Agreement:
    """How often a model chose the reference's tokens: ``same`` of ``tokens``, and ``near`` ones as likely as those."""

    tokens: int
    same: int
    near: int

    @property
    def fraction(self) -> float:
        """Of the reference's tokens, those the model chose, too."""
        return self.same / self.tokens

    @property
    def near_fraction(self) -> float:
        """The same, a token counted as the reference's if that finds it at least NEAR_RATIO times as likely."""
        return self.near / self.tokens


Progress = Callable[[int, int], None]


def continuations(
    executor: Executor, prompts: Sequence[Sequence[int]], new_tokens: int, progress: Progress = lambda *_: None
) -> list[Continuation]:
    """The reference's side: each prompt continued greedily; end-of-sequence ids do not end it."""
    found = []
    for index, prompt in enumerate(prompts):
        tokens: list[int] = []
        near = []
        logits = executor.prefill(0, prompt, 0, 0)
        while True:
            tokens.append(int(logits.argmax()))
            likely = logits >= logits.max() + np.log(NEAR_RATIO)
            near.append(frozenset(np.flatnonzero(likely).tolist()))
            if len(tokens) == new_tokens:
                break
            logits = decode_first(executor, tokens[-1], len(prompt) + len(tokens) - 1)
        found.append(Continuation(tuple(prompt), tuple(tokens), tuple(near)))
        progress(index + 1, len(prompts))
    return found


def agreement(
    executor: Executor, references: Sequence[Continuation], progress: Progress = lambda *_: None
) -> Agreement:
    """The other side: at each position the model's likeliest token, given the reference's tokens before it."""
    total = same = near = 0
    for index, reference in enumerate(references):
        for position, logits in enumerate(_forced(executor, reference)):
            token = int(logits.argmax())
            total += 1
            same += token == reference.tokens[position]
            near += token in reference.near[position]
        progress(index + 1, len(references))
    return Agreement(total, same, near)


def _forced(executor: Executor, reference: Continuation) -> Iterator[NDArray[np.float32]]:
    """The logits [V] that predict each token of the continuation; decoding, so that a cache prunes as it does there."""
    yield executor.prefill(0, reference.prompt, 0, 0)
    for position, token in enumerate(reference.tokens[:-1], len(reference.prompt)):
        yield decode_first(executor, token, position)
