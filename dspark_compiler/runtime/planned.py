"""A round as it is planned: who drafts together, how much is looked at, and what is to come of it.

B: sequences the artifact holds, g: drafts of one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.rounds import Anchors, Drafts, Verdict
from dspark_compiler.runtime.sampling import SamplingInputs
from dspark_compiler.runtime.sequence import SequenceState


@dataclass
class Group:
    """Sequences that are paced together; without a ``pace`` they draft all they can."""

    pace: Pace | None
    sequences: list[SequenceState]

    @property
    def rows(self) -> list[int]:
        """Those of its sequences."""
        return [sequence.row for sequence in self.sequences]


@dataclass(frozen=True)
class PlannedRound:
    """What a round does: a plain step where there are no drafts to verify, else ``verdict`` is to come.

    Attributes:
        began: when it was made.
        groups: sequences that may have drafts; ``drafting`` are those of them that have.
        counts: drafts of each sequence that are looked at, [B].
        numbers: random numbers, one to draw each draft, one to judge it, one for the token that follows; [B,2g+1].
    """

    began: float
    groups: list[Group]
    drafting: list[Group]
    anchors: Anchors
    drafts: Drafts | None
    counts: NDArray[np.int64]
    numbers: NDArray[np.float32]
    sampling: SamplingInputs
    verdict: Verdict | None = None

    @property
    def most(self) -> int:
        """Drafts that are looked at of one sequence, at most."""
        return max(0, int(self.counts.max()))
