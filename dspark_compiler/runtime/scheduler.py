"""How many drafts of each sequence are verified: pure functions of survivals and times (DSpark sec. 3.2.2, 5.2).

Shapes: R sequences, g drafts of one. The survival of a draft is the probability that it and all before it stay; it
falls from draft to draft.

A rule must be non-anticipating: whether a draft is verified may depend on what was drafted before it, never on itself
or on what came after. Else good continuations get verified more often than they are drafted, and the output is no
longer the target's (the paper's appendix A). Confidence k is known before draft k is drawn.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Survival = NDArray[np.float64]
Rate = Callable[[int], float]  # steps a unit of time, given the tokens that a step verifies, anchors included


def sigmoid(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x.astype(np.float64))), dtype=np.float64)


def survival(
    logits: NDArray[np.floating[Any]], temperatures: Sequence[float], shifts: Sequence[float] = ()
) -> Survival:
    """Products of the calibrated confidences sigmoid(logit / T + b) along the last axis.

    No temperatures: all are 1. No shifts: all are 0.
    """
    values = logits.astype(np.float64)
    if len(temperatures):
        values = values / temperatures
    if len(shifts):
        values = values + shifts
    result: Survival = sigmoid(values).cumprod(axis=-1)
    return result


def admit(survivals: Sequence[Survival], rate: Rate) -> list[int]:
    """Drafts of each sequence to verify, a prefix of each (DSpark, algorithm 1).

    The likeliest drafts come first, as long as each raises what is expected of a unit of time,
    (R + sum of survivals) * rate(tokens). The first that does not ends it, since looking further would anticipate.
    """
    lengths = [0] * len(survivals)
    tokens, expected = len(survivals), float(len(survivals))
    best = expected * rate(tokens)
    for sequence, value in _descending(survivals):
        tokens, expected = tokens + 1, expected + value
        throughput = expected * rate(tokens)
        if throughput < best:
            break
        best = throughput
        lengths[sequence] += 1
    return lengths


def admit_top(survivals: Sequence[Survival], capacity: int) -> list[int]:
    """The ``capacity`` likeliest drafts of all sequences, as a prefix of each."""
    lengths = [0] * len(survivals)
    for (sequence, _), _ in zip(_descending(survivals), range(capacity), strict=False):
        lengths[sequence] += 1
    return lengths


def capacity(survivals: Sequence[Survival], rate: Rate) -> int:
    """How many drafts, the likeliest first, promise the most: the best of all, so only for survivals of past rounds."""
    # Of one sequence, asked every round, they fall from draft to draft.
    tokens = len(survivals)
    values = survivals[0].tolist() if tokens == 1 else [value for _, value in _descending(survivals)]
    best, found, expected = tokens * rate(tokens), 0, float(tokens)
    for count, value in enumerate(values, start=1):
        expected += value
        throughput = expected * rate(tokens + count)
        if throughput > best:
            best, found = throughput, count
    return found


def _descending(survivals: Sequence[Survival]) -> Iterator[tuple[int, float]]:
    """Sequence and survival of all drafts, the likeliest first; among equals the earlier draft, then sequence."""
    drafts = [(-float(a), place, row) for row, values in enumerate(survivals) for place, a in enumerate(values)]
    return ((row, -negative) for negative, _, row in sorted(drafts))


class LateSurvivals(Sequence[Survival]):
    """Survivals of drafts whose confidences may be on their way to the host: looking at them waits, once."""

    def __init__(
        self,
        confidences: Sequence[NDArray[np.float32]],
        available: Sequence[int],
        temperatures: Sequence[float],
        shifts: Sequence[float] = (),
    ) -> None:
        """``available`` drafts of each sequence count."""
        self._confidences, self._available = confidences, available
        self._scaling = temperatures, shifts

    @cached_property
    def _values(self) -> list[Survival]:
        pairs = zip(self._confidences, self._available, strict=True)
        return [survival(logits, *self._scaling)[:count] for logits, count in pairs]

    def __len__(self) -> int:
        return len(self._available)

    def __getitem__(self, place: Any) -> Any:
        return self._values[place]


class Admission(Protocol):
    """A rule by which drafts are admitted round by round."""

    def __call__(self, survivals: Sequence[Survival], rate: Rate) -> list[int]:
        """Drafts of each sequence to verify."""


class AsyncScheduler:
    """An Admission that does not wait for this round's confidences to know how much is verified (DSpark sec. 5.2).

    How many drafts in all comes from the confidences of two rounds before; this round's only say which. Until there are
    some, all are admitted.
    """

    def __init__(self) -> None:
        self._past: deque[Sequence[Survival]] = deque(maxlen=2)

    def __call__(self, survivals: Sequence[Survival], rate: Rate) -> list[int]:
        """See Admission."""
        full = len(self._past) == 2
        admitted = capacity(self._past[0], rate) if full else sum(len(values) for values in survivals)
        self._past.append(survivals)
        # Of one sequence there is nothing to choose from, and nothing to wait for.
        return [admitted] if len(survivals) == 1 and full else admit_top(survivals, admitted)
