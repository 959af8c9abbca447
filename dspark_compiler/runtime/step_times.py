"""What the parts of a round take on this machine."""

import time
from collections.abc import Callable
from statistics import median

from dspark_compiler.artifact import StepTime, StepTimes
from dspark_compiler.runtime.dry_rounds import DryRounds
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Drafts, Verdict

_LENGTH = 128  # tokens in each sequence, at least
_WARM, _TIMED = 1, 5
# A device that was idle is awake when nothing has got faster for so many seconds of work; and it is waited for so long.
_WAKING, _MOST_WAKING = 1.0, 4.0
_FASTER = 0.95
_CHAIN = 16  # of a kind in a row where they are made ahead of each other: of waiting for the last little is left


def measure(executor: Executor) -> StepTimes:
    """Medians over a few calls each, taken in turns; what sequences the executor holds is overwritten.

    Milliseconds; the times of ``verify`` include accept and commit. The artifact has heads. Rounds that are made before
    the host knows how the last one ended are timed so, whole: what they take besides their draft is the verify's.
    """
    timer = _Timer(executor)
    parts: dict[str | int, Callable[[], int]] = {"decode": timer.decode}
    if executor.block_size:
        parts["draft"] = timer.draft
    for width in executor.round_widths:
        parts[width] = lambda width=width: timer.verify(width)  # type: ignore[misc]
    taken: dict[str | int, list[float]] = {name: [] for name in parts}

    def take_turn() -> None:
        for name, part in parts.items():
            timer.make_room()
            began = time.perf_counter()
            steps = part()
            taken[name].append((time.perf_counter() - began) * 1e3 / steps)

    for _ in range(_WARM):
        take_turn()
    if executor.device.is_late:
        _wake(take_turn, taken["decode"])
    for _ in range(_TIMED):
        take_turn()
    draft_ms = median(taken["draft"][-_TIMED:]) if "draft" in taken else 0.0
    drafted = draft_ms if executor.chains_rounds else 0.0
    verify = tuple(StepTime(width, median(taken[width][-_TIMED:]) - drafted) for width in executor.round_widths)
    return StepTimes(median(taken["decode"][-_TIMED:]), draft_ms, verify)


def _wake(take_turn: Callable[[], None], times: list[float]) -> None:
    """Takes turns until their ``times`` have stopped falling."""
    began = fell = time.perf_counter()
    best = times[-1]
    while (now := time.perf_counter()) < min(fell + _WAKING, began + _MOST_WAKING):
        take_turn()
        if times[-1] < best * _FASTER:
            best, fell = times[-1], now


class _Timer:
    """Sequences of equal lengths, and the steps that are timed; each makes the sequences a token longer.

    A part returns of how many steps it took the time. Where rounds are chained, parts are, and all begin at one length.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._dry = DryRounds(executor)
        widest = executor.round_widths[-1]
        self._drafts: Drafts | None = None  # those that the following verifies look at
        self._start = min(_LENGTH, executor.max_seq_len // 2)
        self._length = executor.max_seq_len
        # All drafts of a round may stay.
        room = (executor.max_seq_len - self._start) // widest
        self._chain = min(_CHAIN, room) if executor.chains_rounds else 1

    def make_room(self) -> None:
        """Begins the sequences anew if the longest step does not fit; not timed."""
        if self._length + max(self._executor.round_widths[-1], _CHAIN) > self._executor.max_seq_len:
            self._dry.prefill(self._start)
            self._length = self._start

    def decode(self) -> int:
        """One token a sequence, or several in a row."""
        step, steps = None, _CHAIN if self._executor.draws else 1
        for place in range(steps):
            step = self._dry.step(self._length + place, step)
        assert step is None or step.following is not None  # waits for it
        self._grow(steps)
        return steps

    def draft(self) -> int:
        """One block a sequence, or the same several times; the following verifies look at it."""
        for _ in range(self._chain):
            self._drafts = self._dry.draft(self._dry.anchors(self._length))
        assert self._drafts is not None
        assert self._drafts.tokens is not None  # waits for them
        return self._chain

    def verify(self, width: int) -> int:
        """Looks at width - 1 drafts a sequence, or takes several rounds that do."""
        anchors = self._dry.anchors(self._length)
        verdict: Verdict | None = None
        for _ in range(self._chain):
            with self._executor.together():
                drafts = None if self._executor.chains_rounds else self._drafts
                verdict = self._dry.speculate(anchors, drafts or self._dry.draft(anchors), width)
            anchors = verdict.anchors
        assert verdict is not None
        assert verdict.accepted is not None  # waits for it
        self._grow(1)
        return self._chain

    def _grow(self, tokens: int) -> None:
        # What an executor keeps account of has to go on where it ended; others read no further than they are told.
        if not self._executor.chains_rounds:
            self._length += tokens
