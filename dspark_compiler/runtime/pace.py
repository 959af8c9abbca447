"""When to draft, and how far: judged by what earlier rounds brought, so that drafting costs no more than it brings.

R: sequences of a group, g: drafts of one.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from dspark_compiler.runtime.costs import LiveCosts, RoundCosts
from dspark_compiler.runtime.rounds import RoundRecord
from dspark_compiler.runtime.scheduler import Admission, LateSurvivals, Survival

# Rounds without drafts after which one round tries again; doubled each time that does not pay.
_FIRST_PAUSE, _LAST_PAUSE = 8, 256

# Time that drafting may have lost in all: so many of the dearest rounds, and this share of the time of plain decoding.
_LOST_ROUNDS, _LOST_SHARE = 3, 0.01

# Rounds with drafts after which plain steps show what one takes now; they bring less, so there are few.
_REFRESH = 256

# Plain steps' worth of what it gained that is remembered.
_CREDIT = 16

# Weight of an observation after the next one; of a draft that was not looked at; of what a round gained. A round's
# tokens spread by nearly as many as there are: a mean of few rounds parks what pays. What drafting may lose is bounded.
_MEMORY, _UNSEEN_MEMORY, _GAIN_MEMORY = 0.95, 0.99, 0.97


class Acceptance:
    """Running estimates of how often draft j stays if those before it do.

    A draft that was seldom looked at is taken to be as good as the one before it, and what was not looked at for long
    is forgotten; so longer blocks are tried again from time to time.
    """

    _PRIOR, _PRIOR_WEIGHT = 0.7, 2.0

    def __init__(self, block_size: int) -> None:
        self._stayed = [0.0] * block_size
        self._seen = [0.0] * block_size

    def observe(self, drafted: int, accepted: int) -> None:
        """One sequence's round: the first rejected draft ends what it tells."""
        if not drafted:
            return
        seen = min(drafted, accepted + 1)
        # Lists of a few numbers; as arrays they would take several times as long.
        for place in range(len(self._seen)):
            memory = _MEMORY if place < seen else _UNSEEN_MEMORY
            self._seen[place] = self._seen[place] * memory + (place < seen)
            self._stayed[place] = self._stayed[place] * memory + (place < accepted)

    def forget(self) -> None:
        """What was seen counts for little from now on."""
        self._seen = [seen * 0.25 for seen in self._seen]
        self._stayed = [stayed * 0.25 for stayed in self._stayed]

    def survival(self) -> Survival:
        """Estimated survivals [g]."""
        rate, rates = self._PRIOR, []
        for stayed, seen in zip(self._stayed, self._seen, strict=True):
            rate = (stayed + rate * self._PRIOR_WEIGHT) / (seen + self._PRIOR_WEIGHT)
            rates.append(rate)
        result: Survival = np.cumprod(rates, dtype=np.float64)
        return result


class Pace:
    """Paces the rounds of a group of sequences that are scheduled together.

    While drafting brings less than plain steps would, the group is parked: it decodes plainly for a while, then tries
    one round; another answer is not parked for what the last one was. What drafting may lose in all is bounded as well,
    for texts that mislead every estimate.
    """

    def __init__(
        self,
        costs: RoundCosts,
        block_size: int,
        temperatures: Sequence[float],
        admission: Admission,
        shifts: Sequence[float] = (),
    ) -> None:
        """``temperatures`` and ``shifts`` calibrate confidences; ``admission`` is the rule where there are some.

        With ``LiveCosts`` a plain step is taken now and then, or nobody would know what one takes.
        """
        self._costs = costs
        self._scaling = temperatures, shifts
        self._admission = admission
        self._acceptance = Acceptance(block_size)
        self._gain = self._hope  # of a round with drafts over plain steps, a running mean in milliseconds
        self._lost = 0.0
        self._plain = 0.0  # what plain decoding would have taken
        self._pause = _FIRST_PAUSE
        self._parked = 0
        self._trying = False
        self._declined = False
        self._refresh = _REFRESH if isinstance(costs, LiveCosts) else 0
        self._in_a_row = 0

    @property
    def _hope(self) -> float:
        """What a round is taken to gain, in milliseconds, before anything is known of a text."""
        return self._costs.decode_ms / 2

    def began(self) -> None:
        """Another answer begins with the next round: it is not parked for what the last one was, what pays goes on."""
        self._parked = 0
        self._pause = _FIRST_PAUSE
        self._gain = max(self._gain, self._hope)

    def wants_drafts(self) -> bool:
        """Whether the next round should have drafts."""
        return self._parked == 0 and self._may_lose(self._plain) and not self._refreshes

    @property
    def rests(self) -> bool:
        """Whether this round has no drafts, and neither will the next, which can be made ahead then."""
        return self._parked > 1 or self._refreshes or not self._may_lose(self._plain + self._costs.decode_ms)

    @property
    def _refreshes(self) -> bool:
        """Whether it is time for plain steps that show what one takes: two, of which the second is made ahead."""
        return 0 < self._refresh <= self._in_a_row

    def _may_lose(self, plain: float) -> bool:
        """Whether a round may bring nothing, when plain decoding would have taken so long."""
        worst = self._costs.widest_ms - self._costs.decode_ms
        return self._lost + worst <= _LOST_ROUNDS * worst + _LOST_SHARE * plain

    def lengths(self, available: Sequence[int], confidences: Sequence[np.ndarray] | None) -> list[int]:
        """How many of each sequence's ``available`` drafts to verify, given the logits of their confidence, if any.

        What the chosen width has to spare is used: it depends on no more than the choice of the width does.
        """
        if confidences is None:
            estimated = self._acceptance.survival()
            width = self._costs.best_width([estimated[:count] for count in available])
            # One that is tried again shows nothing unless something is drafted.
            width = self._costs.width(1) if width == 1 and self._trying and any(available) else width
            self._declined = width == 1
        else:
            values = LateSurvivals(confidences, available, *self._scaling)
            admitted = self._admission(values, partial(self._costs.rate, sequences=len(available)))
            # A capacity that earlier rounds of more sequences promised may be more than there is now.
            width = self._costs.width(min(max(admitted, default=0), max(available, default=0)))
        return [min(count, width - 1) for count in available]

    def drafted(self, records: Sequence[RoundRecord]) -> None:
        """A round with drafts is over, with one record for each sequence of the group."""
        costs = self._costs
        self._in_a_row += 1
        tokens = sum(record.accepted + 1 for record in records) / len(records)
        plain = tokens * costs.decode_ms
        gain = plain - costs.round_ms(costs.width(max(record.drafted for record in records)))
        self._plain += plain
        self._lost = max(self._lost - gain, -_CREDIT * costs.decode_ms)
        for record in records:
            self._acceptance.observe(record.drafted, record.accepted)
        self._gain = _GAIN_MEMORY * self._gain + (1 - _GAIN_MEMORY) * gain
        if self._trying:
            self._tried(gain)
        # Estimates change only when something is drafted.
        if self._gain < 0 or self._declined:
            self._parked = self._pause

    def _tried(self, gain: float) -> None:
        """The first round after a pause."""
        self._trying = False
        if gain > 0:
            self._pause = _FIRST_PAUSE
            self._gain = gain
            self._acceptance.forget()
        else:
            self._gain = min(self._gain, gain)
            self._pause = min(2 * self._pause, _LAST_PAUSE)

    def decoded(self) -> None:
        """A round without drafts is over."""
        self._plain += self._costs.decode_ms
        self._in_a_row = 0
        if self._parked:
            self._parked -= 1
            self._trying = self._parked == 0
