"""What steps and rounds cost: by the artifact's table of measured times, or as they have been lately.

R: sequences, g: drafts of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dspark_compiler.artifact import StepTime, StepTimes
from dspark_compiler.runtime.scheduler import Survival

# Weight of a time just measured, and how many times the usual one it may be: whoever took the processor gives it back.
_WEIGHT, _OUTLIER = 0.1, 2.0


@dataclass
class RoundCosts:
    """Costs of a round in milliseconds; the batch is static, so they do not depend on how many sequences take part."""

    times: StepTimes

    @property
    def decode_ms(self) -> float:
        """A step of one token."""
        return self.times.decode_ms

    @property
    def widest_ms(self) -> float:
        """A round at its dearest."""
        return self.round_ms(self.times.verify[-1].tokens)

    def width(self, drafts: int) -> int:
        """Tokens that a verify of so many drafts takes: the narrowest there is; 1 without drafts, a plain step."""
        return next(time.tokens for time in self.times.verify if time.tokens > drafts) if drafts else 1

    def round_ms(self, width: int) -> float:
        """Drafting, then a step of this width; of width 1 a plain one."""
        return self.times.draft_ms + self._step_ms(width)

    def rate(self, tokens: int, sequences: int) -> float:
        """Rounds a millisecond when ``tokens`` of all sequences together are verified.

        Between two widths times are interpolated: a draft costs its share of the next width, though the step will take
        the whole, for what a width has to spare is then used by more drafts.
        """
        return 1 / (self.times.draft_ms + self._between(tokens / sequences))

    def best_width(self, survivals: Sequence[Survival]) -> int:
        """The width at which drafts of these survivals bring the most tokens a millisecond; 1: better not to draft."""
        best, found = len(survivals) / self.decode_ms, 1
        for time in self.times.verify:
            tokens = sum(1 + float(values[: time.tokens - 1].sum()) for values in survivals)
            if (rate := tokens / self.round_ms(time.tokens)) > best:
                best, found = rate, time.tokens
        return found

    def _between(self, tokens: float) -> float:
        """A step of so many tokens on average, by lines from width to width; asked for too often for numpy."""
        width, ms = 1, self.decode_ms
        for time in self.times.verify:
            if tokens < time.tokens:
                return ms + (time.ms - ms) * max(0.0, tokens - width) / (time.tokens - width)
            width, ms = time.tokens, time.ms
        return ms

    def _step_ms(self, width: int) -> float:
        return self.decode_ms if width == 1 else next(t.ms for t in self.times.verify if t.tokens == width)


@dataclass
class LiveCosts(RoundCosts):
    """Costs that follow what this process measures: memory gets slower and faster, contexts longer.

    Begins with the artifact's table.
    """

    def drafted(self, ms: float) -> None:
        """Drafting took so long."""
        self.times = replace(self.times, draft_ms=_blend(self.times.draft_ms, ms))

    def stepped(self, width: int, ms: float) -> None:
        """A step of this width took so long; 1 is a plain one."""
        times = self.times
        if width == 1:
            self.times = StepTimes(_blend(times.decode_ms, ms), times.draft_ms, times.verify)
            return
        verify = (StepTime(width, _blend(t.ms, ms)) if t.tokens == width else t for t in times.verify)
        self.times = StepTimes(times.decode_ms, times.draft_ms, tuple(verify))


def _blend(usual: float, ms: float) -> float:
    return usual + _WEIGHT * (min(ms, _OUTLIER * usual) - usual)
