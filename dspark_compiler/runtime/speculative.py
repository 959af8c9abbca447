"""Rounds of several tokens: drafts, one verify of them all, and what the target itself says after those that stay.

What is generated has the target's distribution exactly, whatever is drafted, at whatever pace. Greedy decoding gives
the tokens of plain decoding.

B: sequences the artifact holds, g: drafts of one.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.costs import LiveCosts
from dspark_compiler.runtime.drafts import Proposer
from dspark_compiler.runtime.executor import Executor, Logits
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.planned import Group, PlannedRound
from dspark_compiler.runtime.rounds import Anchors, Drafts, RoundRecord, Step, Verdict
from dspark_compiler.runtime.sampling import pick, probabilities
from dspark_compiler.runtime.seats import Seating
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.strategy import Ahead, make_step

Observer = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class Live:
    """A pace by costs that are measured as rounds go."""

    pace: Pace
    costs: LiveCosts


class Speculative:
    """A Strategy: each round all sequences together take a plain step, or draft and verify.

    Where the device has its own clock, the next round is under way before the host reads this one: its width then goes
    by what was known a round earlier, and it is wasted for a sequence which turns out to have ended.

    A sequence with a repetition penalty is decoded without drafts, since these would have to be penalized one by one.
    A sampled one with a seed is paced by itself, by the artifact's times, and takes as many random numbers a round
    whatever is drafted, so that its seed reproduces it alone and in a batch. All others share one pace, from answer to
    answer; ``live`` times are theirs.
    """

    def __init__(
        self,
        executor: Executor,
        proposer: Proposer,
        block_size: int,
        make_pace: Callable[[], Pace] | None = None,
        observer: Observer | None = None,
        live: Live | None = None,
    ) -> None:
        """``block_size`` is g. ``observer`` hears what became of each sequence's drafts."""
        self._executor = executor
        self._proposer = proposer
        self._block_size = block_size
        self._most = min(block_size, executor.round_widths[-1] - 1)
        self._make_pace = make_pace
        self._shared = live.pace if live is not None else None if make_pace is None else make_pace()
        self._costs = None if live is None else live.costs
        self._own: WeakKeyDictionary[SequenceState, Pace] = WeakKeyDictionary()
        self._observer = observer or (lambda _: None)
        self._ahead: Ahead[Step] = Ahead()
        self._rounds: Ahead[PlannedRound] = Ahead()
        self._read = 0.0  # when the last verdict was
        self._seating = Seating(executor.batch, block_size)
        self._counted: tuple[list[int], NDArray[np.int64]] = [], np.zeros(0, np.int64)

    def round(self, active: Sequence[SequenceState]) -> None:
        """See Strategy."""
        made = self._rounds.pop(active)
        if made is None and self._ahead.is_for(active):  # there were not to be drafts
            self._step(active)
            return
        chained = made is not None
        made = made or self._make(active, None)
        if made.verdict is None:
            accepted = self._decode(active, made.groups, made.numbers.following)
        else:
            if self._chains(active, made):
                self._rounds.keep(active, self._make(active, made.verdict.anchors))
            accepted = self._take(active, made, made.verdict)
        self._stepped(made, chained=chained)
        for group in made.groups:
            drafted = made if group in made.drafting else None
            self._settle(group.among(active), drafted, accepted)

    def _step(self, active: Sequence[SequenceState]) -> None:
        """A plain step that was made ahead, and takes what lies between its token and the one before."""
        groups = self._groups(active)
        self._decode(active, groups, None)
        began, self._read = self._read, time.perf_counter()
        if self._costs is not None:
            self._costs.stepped(1, (self._read - began) * 1e3)
        for group in groups:
            self._settle(group, None, None)

    def _make(self, active: Sequence[SequenceState], after: Anchors | None) -> PlannedRound:
        """Plans a round and, if it has drafts, puts it on the way; ``after`` anchors that the host does not know."""
        with self._executor.together():
            return self._plan(active, after)

    def _plan(self, active: Sequence[SequenceState], after: Anchors | None) -> PlannedRound:
        began = time.perf_counter()
        seats = self._seating.of(active)
        limits = {s.row: self._limit(s) if after is None else self._most for s in active}
        groups = self._groups([sequence for sequence in active if limits[sequence.row] > 0])
        for group in groups if after is None else ():
            group.begin()
        anchors = Anchors(*seats.columns()) if after is None else after
        numbers = seats.numbers()
        drafting = [group for group in groups if group.pace is None or group.pace.wants_drafts()]
        counts = (seats.counts - 1).tolist()
        drafts, verdict = None, None
        if drafting:
            sequences = [sequence for group in drafting for sequence in group.sequences]
            drafts = self._proposer.propose(sequences, anchors, numbers.drafting, seats.sampling)
            if self._costs is not None and not drafts.late:
                self._costs.drafted(_since(began))
                began = time.perf_counter()
            for group in drafting:
                available = [min(limits[row], int(drafts.counts[row])) for row in group.rows]
                for row, count in zip(group.rows, _lengths(group, available, drafts), strict=True):
                    counts[row] = count
        if drafts is not None and max(counts) > 0:
            looked_at = self._looked_at(counts)
            verdict = self._executor.speculate(anchors, drafts, looked_at, numbers.judging, seats.sampling)
        return PlannedRound(began, groups, drafting, drafts, counts, numbers, verdict)

    def _looked_at(self, counts: list[int]) -> NDArray[np.int64]:
        """The same as an array, which is the last one if it can be: then it need not be sent."""
        if self._counted[0] != counts:
            self._counted = counts, np.array(counts)
            self._counted[1].flags.writeable = False
        return self._counted[1]

    def _chains(self, active: Sequence[SequenceState], made: PlannedRound) -> bool:
        """Whether the next round can be made now: it comes, and has room for a block, however this one ends.

        What it drafts past the end of an answer is not taken.
        """
        if not self._proposer.chains or len(made.groups) != 1:
            return False
        (group,) = made.groups
        pace = group.pace
        if pace is not None and (pace is not self._shared or not pace.wants_drafts()):
            return False  # a seed's rounds go by all that came before them
        waits = pace is not None and len(active) > 1 and made.drafts is not None and made.drafts.has_confidence
        return not waits and all(self._goes_on(s, made.counts[s.row] + 1) for s in active)

    def _goes_on(self, sequence: SequenceState, more: int) -> bool:
        """Whether a sequence has drafts even if it is ``more`` tokens longer, and room for a whole block then."""
        room = self._executor.exact_rows(sequence.row, sequence.length + more)
        return self._limit(sequence, more) > 0 and room > self._most

    def _stepped(self, made: PlannedRound, *, chained: bool) -> None:
        """Tells what a round took; ``chained``: it was made before the host knew how the last one ended."""
        began, self._read = max(made.began, self._read), time.perf_counter()
        # What nothing was made ahead of shows what waiting for it takes, too, where most rounds or steps are.
        waited = self._executor.draws if made.verdict is None else self._proposer.chains and not chained
        if self._costs is None or waited:
            return
        widths = self._executor.round_widths
        width = 1 if made.verdict is None else widths[bisect_right(widths, made.most)]
        # What was drafted in the device's own time was waited for with the step.
        late_ms = self._costs.times.draft_ms if made.drafts is not None and made.drafts.late else 0.0
        self._costs.stepped(width, (self._read - began) * 1e3 - late_ms)

    def _limit(self, sequence: SequenceState, more: int = 0) -> int:
        """Drafts of a sequence that may be looked at, when it is ``more`` tokens longer.

        With the anchor, so many tokens and one more may come of them.
        """
        if sequence.params.repetition_penalty != 1:
            return 0
        room = self._executor.exact_rows(sequence.row, sequence.length + more)
        return max(0, min(self._most, room - 1, sequence.remaining - more - 1))

    def _groups(self, sequences: Sequence[SequenceState]) -> list[Group]:
        """Those with a pace of their own, and one of all others."""
        shared: list[SequenceState] = []
        groups = []
        for sequence in sequences:
            params = sequence.params
            if self._make_pace is None or params.seed is None or params.temperature == 0:
                shared.append(sequence)
            else:
                groups.append(Group(self._own.setdefault(sequence, self._make_pace()), [sequence]))
        return [*groups, Group(self._shared, shared)] if shared else groups

    def _take(self, active: Sequence[SequenceState], made: PlannedRound, verdict: Verdict) -> NDArray[np.int32]:
        """Waits for a verdict and takes its tokens; returns how many drafts stayed."""
        assert made.drafts is not None
        accepted = verdict.accepted  # behind which all else has come, too
        for sequence in active:
            row = sequence.row
            if sequence.params.repetition_penalty == 1:
                stay = made.drafts.tokens[row, : accepted[row]].tolist()
                _advance(sequence, [*stay, int(verdict.following[row])])
            else:
                _advance(sequence, [sequence.draw(verdict.first_logits(row))])
        return accepted

    def _decode(
        self, active: Sequence[SequenceState], groups: Sequence[Group], numbers: NDArray[np.float32] | None
    ) -> NDArray[np.int32]:
        """A plain step; numbers [B,1] are those that a verify without drafts would use, None if it was made ahead."""
        if self._executor.draws and all(sequence.params.repetition_penalty == 1 for sequence in active):
            self._draw(active, groups, numbers)
        else:
            assert numbers is not None, "what is drawn by the host is not made ahead"
            seats = self._seating.of(active)
            tokens, positions, lengths = seats.columns()
            logits = self._executor.decode(tokens, positions, lengths, seats.counts)
            for sequence in active:
                _advance(sequence, [_draw(sequence, logits[sequence.row], float(numbers[sequence.row, 0]))])
        return np.zeros(self._executor.batch, np.int32)

    def _draw(
        self, active: Sequence[SequenceState], groups: Sequence[Group], numbers: NDArray[np.float32] | None
    ) -> None:
        """A plain step whose tokens the artifact draws; the next one is made ahead if it is going to be plain too."""
        step = self._ahead.pop(active)
        if step is None:
            assert numbers is not None, "there was a step ahead"
            step = make_step(self._executor, self._seating.of(active), numbers, None)
        going_on = [sequence for sequence in active if sequence.remaining > 1]
        if going_on and all(group.pace is not None and group.pace.rests for group in groups):
            seats = self._seating.of(going_on)
            self._ahead.keep(going_on, make_step(self._executor, seats, seats.numbers().following, step))
        following = step.following
        for sequence in active:
            _advance(sequence, [int(following[sequence.row])])

    def _settle(self, group: Group, made: PlannedRound | None, accepted: NDArray[np.int32] | None) -> None:
        """Tells the pace and the observer what came of the round; None: the group had no drafts."""
        drafts = None if made is None else made.drafts
        if made is None or drafts is None or accepted is None or not any(drafts.counts[row] for row in group.rows):
            if group.pace is not None:
                group.pace.decoded()
            return
        confidence = drafts.confidence
        records = [
            RoundRecord(row, made.counts[row], int(accepted[row]), None if confidence is None else confidence[row])
            for row in group.rows
        ]
        if group.pace is not None:
            group.pace.drafted(records)
        for record in records:
            self._observer(record)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def _lengths(group: Group, available: list[int], drafts: Drafts) -> list[int]:
    if group.pace is None or not any(available):
        return available
    return group.pace.lengths(available, drafts.confidences(group.rows))


def _draw(sequence: SequenceState, logits: Logits, number: float) -> int:
    """The next token, as accept draws it."""
    params = sequence.params
    if params.temperature == 0 or params.repetition_penalty != 1:
        return sequence.draw(logits)
    return pick(probabilities(logits, params, ()), number)


def _advance(sequence: SequenceState, tokens: list[int]) -> None:
    """Takes a round's tokens until the sequence ends; all but the last one are in the cache."""
    sequence.rounds += 1
    for token in tokens:
        sequence.length += 1
        sequence.position += 1
        sequence.take(token)
        if sequence.finish_reason is not None:
            break
