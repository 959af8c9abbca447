"""What steps take is measured once a device that was idle has come to its own speed."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dspark_compiler.runtime import step_times

SLEEPY_SECONDS = 0.25
SLOW = 3  # times as long while it wakes up


class Device:
    """A device's clock, and an executor on it whose steps move the clock on; so does waiting for what they made."""

    batch, block_size, max_seq_len, round_widths, draws = 1, 3, 4096, (2, 4), True

    def __init__(self, *, is_late: bool, chains: bool = False, waiting: float = 0.0) -> None:
        self.device = SimpleNamespace(is_late=is_late)
        self.chains_rounds, self.now, self._waiting = chains, 0.0, waiting
        self.lengths: list[int] = []

    def perf_counter(self) -> float:
        return self.now

    def together(self) -> Any:
        return nullcontext()

    def _take(self, ms: float) -> None:
        self.now += ms * (SLOW if self.now < SLEEPY_SECONDS else 1) / 1e3

    def _made(self, **values: Any) -> Any:
        device = self

        class Made(SimpleNamespace):
            def __getattribute__(self, name: str) -> Any:
                if name in ("following", "tokens", "accepted"):
                    device._take(device._waiting)
                return super().__getattribute__(name)

        return Made(**values)

    def prefill(self, *_: Any) -> None:
        self._take(5)

    def step(self, _: Any, positions: np.ndarray, *__: Any) -> Any:
        self.lengths.append(int(positions[0]))
        self._take(1 / 4)
        return self._made(following=0)

    def draft(self, *_: Any) -> Any:
        self._take(2)
        return self._made(tokens=np.zeros((1, 3), np.int64), counts=np.full(1, 3))

    def speculate(self, anchors: Any, drafts: Any, counts: np.ndarray, *_: Any) -> Any:
        self._take(float(counts[0]) + 1)
        return self._made(accepted=np.zeros(1), anchors=anchors)


@pytest.mark.parametrize(("is_late", "factor"), [(True, 1), (False, SLOW)])
def test_a_device_with_its_own_clock_wakes_up_first(
    monkeypatch: pytest.MonkeyPatch, is_late: bool, factor: int
) -> None:
    executor = Device(is_late=is_late)
    monkeypatch.setattr(step_times, "time", executor)
    times = step_times.measure(executor)  # type: ignore[arg-type]
    assert [times.decode_ms, times.draft_ms] == pytest.approx([factor / 4, 2 * factor])
    assert [(step.tokens, step.ms) for step in times.verify] == [
        (2, pytest.approx(2 * factor)),
        (4, pytest.approx(4 * factor)),
    ]
    assert executor.now < 3


def test_rounds_that_are_made_ahead_are_timed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Device(is_late=True, chains=True, waiting=1.6)
    monkeypatch.setattr(step_times, "time", executor)
    times = step_times.measure(executor)  # type: ignore[arg-type]
    # Of waiting a sixteenth is left in each, and a verify is what a round takes besides its draft.
    assert [times.decode_ms, times.draft_ms] == pytest.approx([0.25 + 0.1, 2 + 0.1])
    assert [step.ms for step in times.verify] == pytest.approx([2, 4])
    assert set(executor.lengths) == set(range(128, 144))  # all at one length


def test_rounds_made_ahead_fit_a_short_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Device(is_late=True, chains=True)
    executor.max_seq_len = 64
    monkeypatch.setattr(step_times, "time", executor)
    assert [step.ms for step in step_times.measure(executor).verify] == pytest.approx([2, 4])  # type: ignore[arg-type]
    assert max(executor.lengths) < 64
