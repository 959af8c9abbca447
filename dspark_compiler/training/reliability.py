"""How far a drafter's confidences can be trusted: what became of drafted blocks, and measures over them.

Shapes: n rounds, g tokens of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.scheduler import survival

BINS = 20

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rollouts:
    """What became of n drafted blocks.

    Attributes:
        logits: of each draft's confidence, [n,g]; None where the drafter gives none.
        drafted: drafts that were looked at, [n]; fewer than g at the end of an answer.
        accepted: those of them that stayed, [n].
        origin: the prompt each belongs to, [n].
    """

    logits: Floats | None
    drafted: NDArray[np.int64]
    accepted: NDArray[np.int64]
    origin: NDArray[np.int64]

    def select(self, chosen: Bools) -> "Rollouts":
        """The rounds [n] that are True."""
        logits = None if self.logits is None else self.logits[chosen]
        return Rollouts(logits, self.drafted[chosen], self.accepted[chosen], self.origin[chosen])

    def reached(self, position: int) -> Bools:
        """Rounds [n] in which all drafts before a position stayed and the one there was looked at."""
        return (self.drafted > position) & (self.accepted >= position)


def acceptance(rollouts: Rollouts, block: int) -> tuple[float | None, ...]:
    """Per position, how often a draft stays given that all before it did; None where that never came."""
    found = []
    for position in range(block):
        reached = rollouts.reached(position)
        found.append(float((rollouts.accepted[reached] > position).mean()) if reached.any() else None)
    return tuple(found)


def survival_errors(
    rollouts: Rollouts, temperatures: Sequence[float], shifts: Sequence[float] = ()
) -> tuple[float, ...]:
    """Per position, the expected calibration error of ``survival``."""
    assert rollouts.logits is not None
    predicted = survival(rollouts.logits, temperatures, shifts)
    return tuple(survival_error(rollouts, predicted[:, position], position) for position in range(predicted.shape[1]))


def survival_error(rollouts: Rollouts, predicted: Floats, position: int) -> float:
    """Expected calibration error of predictions [n] that a block stays up to a position, itself included."""
    seen = rollouts.drafted > position
    return calibration_error(predicted[seen], rollouts.accepted[seen] > position)


def calibration_error(predicted: Floats, happened: Bools) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017, eq. 3); 0 without predictions."""
    if not len(predicted):
        return 0.0
    gaps = np.bincount(bin_of(predicted), weights=predicted - happened, minlength=BINS)
    return float(np.abs(gaps).sum() / len(predicted))


def errors_by_chance(
    rollouts: Rollouts, temperatures: Sequence[float], shifts: Sequence[float] = ()
) -> tuple[float, ...]:
    """What ``survival_errors`` would show, on average over what could have happened, if confidences were exact.

    In a bin, the sum of predicted minus happened is then near normal, with the variances p (1 - p) summed.
    """
    assert rollouts.logits is not None
    predicted = survival(rollouts.logits, temperatures, shifts)
    found = []
    for position in range(predicted.shape[1]):
        seen = predicted[rollouts.drafted > position, position]
        variance = np.bincount(bin_of(seen), weights=seen * (1 - seen), minlength=BINS)
        found.append(float(np.sqrt(2 / np.pi * variance).sum() / max(1, len(seen))))
    return tuple(found)


def bin_of(predicted: Floats) -> NDArray[np.int64]:
    """Bins of equal width [n]."""
    return np.minimum((predicted * BINS).astype(np.int64), BINS - 1)


def discrimination(rollouts: Rollouts) -> tuple[float, ...]:
    """Per position, the AUC of its confidence among the blocks that got there."""
    assert rollouts.logits is not None
    found = []
    for position in range(rollouts.logits.shape[1]):
        reached = rollouts.reached(position)
        found.append(auc(rollouts.logits[reached, position], rollouts.accepted[reached] > position))
    return tuple(found)


def auc(scores: Floats, happened: Bools) -> float:
    """How often what happened has a higher score than what did not, ties counted half (Mann & Whitney 1947).

    0.5 where all or nothing happened.
    """
    positive = int(happened.sum())
    negative = len(happened) - positive
    if not positive or not negative:
        return 0.5
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Equal scores share the mean of their ranks.
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[group]
    return float((ranks[happened].sum() - positive * (positive + 1) / 2) / (positive * negative))
