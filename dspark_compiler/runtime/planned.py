"""A round as it is planned: who drafts together, how much is looked at, and what is to come of it.

B: sequences the artifact holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.rounds import Drafts, Verdict
from dspark_compiler.runtime.seats import Numbers
from dspark_compiler.runtime.sequence import SequenceState


class Group:
    """Sequences that are paced together; without a ``pace`` they draft all they can.

    Attributes:
        rows: those of its sequences.
    """

    def __init__(self, pace: Pace | None, sequences: Sequence[SequenceState]) -> None:
        self.pace = pace
        self.sequences = sequences
        self.rows = [sequence.row for sequence in sequences]

    def begin(self) -> None:
        """Tells the pace if an answer begins with the round that is planned."""
        if self.pace is not None and any(sequence.rounds == 0 for sequence in self.sequences):
            self.pace.began()

    def among(self, active: Sequence[SequenceState]) -> "Group":
        """Those of it that are among these, paced as it is."""
        return Group(self.pace, [sequence for sequence in self.sequences if sequence in active])


@dataclass
class PlannedRound:
    """What a round does: a plain step where there are no drafts to verify, else ``verdict`` is to come.

    Attributes:
        began: when it was made.
        groups: sequences that may have drafts; ``drafting`` are those of them that have.
        counts: drafts of each sequence that are looked at; -1 where there is none. As many as B.
    """

    began: float
    groups: list[Group]
    drafting: list[Group]
    drafts: Drafts | None
    counts: list[int]
    numbers: Numbers
    verdict: Verdict | None

    @property
    def most(self) -> int:
        """Drafts that are looked at of one sequence, at most."""
        return max(0, *self.counts)
