"""What steps take is measured once a device that was idle has come to its own speed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dspark_compiler.runtime import step_times

SLEEPY_SECONDS = 0.25
SLOW = 3  # times as long while it wakes up


class Device:
    """A device's clock, and an executor on it whose steps move the clock on."""

    batch, block_size, max_seq_len, round_widths, draws = 1, 3, 4096, (2, 4), True

    def __init__(self, *, is_late: bool) -> None:
        self.device = SimpleNamespace(is_late=is_late)
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def _take(self, ms: float) -> None:
        self.now += ms * (SLOW if self.now < SLEEPY_SECONDS else 1) / 1e3

    def prefill(self, *_: Any) -> None:
        self._take(5)

    def step(self, *_: Any) -> Any:
        self._take(1 / 4)
        return SimpleNamespace(following=0)

    def draft(self, *_: Any) -> Any:
        self._take(2)
        return SimpleNamespace(tokens=np.zeros((1, 3), np.int64))

    def speculate(self, anchors: Any, drafts: Any, counts: np.ndarray, *_: Any) -> Any:
        self._take(float(counts[0]) + 1)
        return SimpleNamespace(accepted=np.zeros(1))


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
