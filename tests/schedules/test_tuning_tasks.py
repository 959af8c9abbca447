"""What tuning keeps of a product's schedules, on a device that only seems to be one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.bench import Run, Sample
from dspark_compiler.schedules.choice import choose_schedule
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.tune import TuningStep, linear_tasks, spend
from tests.schedules.fake_bench import FakeBench

LINEARS = FragmentLinears("sm_90a")
ONE = LinearWorkload(1, 272, 4096, "bfloat16")
EIGHT = replace(ONE, rows=8)
CUTS = list(LINEARS.candidates(ONE))
TWIN = next(cut for cut in CUTS[1:] if cut.warps == CUTS[0].warps)
OTHER = next(cut for cut in CUTS[1:] if cut.warps != CUTS[0].warps)


def records(folder: Path) -> Records:
    return Records("sm_90a", [], folder)


def tune(bench: FakeBench, kept: Records, trials: int = 1000, works: Sequence[LinearWorkload] = (ONE,)) -> int:
    return spend(linear_tasks(dict.fromkeys(works, 1.0), LINEARS, bench, kept), trials, kept)


def quick(change: float = 0.0) -> Callable[[Sample], Run]:
    return lambda sample: Run((sample.expected + change).astype(sample.dtype), 5.0)


def test_a_faster_schedule_is_found_and_used(tmp_path: Path) -> None:
    assert tune(FakeBench({TWIN: quick()}), records(tmp_path)) == len(CUTS)
    kept = records(tmp_path)
    assert kept.measured(ONE) == {cut: 5.0 if cut == TWIN else 10.0 for cut in CUTS}
    assert choose_schedule(ONE, LINEARS, kept) == TWIN
    assert tune(FakeBench(), kept) == 0


def test_an_interrupted_tuning_goes_on_where_it_was(tmp_path: Path) -> None:
    class Interrupted(FakeBench):
        def compare(self, prepared: Sequence[StreamSchedule], sample: Sample) -> list[Run]:
            if len(sample.expected) == 8:
                raise KeyboardInterrupt
            return super().compare(prepared, sample)

    with pytest.raises(KeyboardInterrupt):
        tune(Interrupted(), records(tmp_path), works=(ONE, EIGHT))
    assert len(records(tmp_path).measured(ONE)) == len(CUTS)
    again = FakeBench()
    assert tune(again, records(tmp_path), works=(ONE, EIGHT)) == len(CUTS)
    assert again.seen == CUTS


def test_more_trials_meet_the_default_and_the_best_again(tmp_path: Path) -> None:
    tune(FakeBench({CUTS[1]: quick()}), records(tmp_path), trials=2)
    slow = FakeBench({CUTS[1]: quick()}, time=20.0)
    assert tune(slow, records(tmp_path), trials=3) == 1
    assert slow.seen == CUTS[:3]
    # The device has become half as fast as it was; the new time is put on the old footing.
    assert records(tmp_path).measured(ONE) == {CUTS[0]: 10.0, CUTS[1]: 5.0, CUTS[2]: 10.0}


def test_a_record_that_is_wrong_now_is_not_trusted_any_more(tmp_path: Path) -> None:
    tune(FakeBench({CUTS[1]: quick()}), records(tmp_path), trials=2)
    with pytest.warns(UserWarning, match=r"StreamSchedule\(.*\) (gives a wrong product|rounds differently); left out"):
        tune(FakeBench({CUTS[1]: quick(1.0)}), records(tmp_path), trials=3)
    assert records(tmp_path).measured(ONE)[CUTS[1]] == math.inf
    assert choose_schedule(ONE, LINEARS, records(tmp_path)) == CUTS[0]


@pytest.mark.parametrize(
    ("cut", "run", "reason"),
    [
        (TWIN, lambda _: Run(failure="does not compile: nvcc"), "does not compile: nvcc"),
        (OTHER, lambda _: Run(failure="does not end well: illegal address"), "illegal address"),
        (OTHER, quick(1.0), "gives a wrong product"),
        (OTHER, lambda sample: Run(np.full_like(sample.expected, np.nan), 1.0), "gives a wrong product"),
        (TWIN, quick(1e-4), "rounds differently"),
    ],
)
def test_what_fails_loses(cut: StreamSchedule, run: Callable[[Sample], Run], reason: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=rf"tuning linear 1x4096 to 272 bfloat16: StreamSchedule.* {reason}; left out"):
        assert tune(FakeBench({cut: run}), records(tmp_path)) == len(CUTS)
    kept = records(tmp_path)
    assert [other for other, time in kept.measured(ONE).items() if time == math.inf] == [cut]
    assert choose_schedule(ONE, LINEARS, kept) == CUTS[0]
    assert tune(FakeBench(), kept) == 0


def test_another_order_of_sums_may_round_differently(tmp_path: Path) -> None:
    tune(FakeBench({cut: quick(1e-4) for cut in CUTS if cut.warps == OTHER.warps}), records(tmp_path))
    assert choose_schedule(ONE, LINEARS, records(tmp_path)) == OTHER


def test_a_default_that_fails_is_told_of_and_leaves_no_record(tmp_path: Path) -> None:
    bench = FakeBench({CUTS[0]: lambda _: Run(failure="does not run: no device")})
    with pytest.warns(UserWarning, match="default schedule does not run: no device; skipped"):
        tune(bench, records(tmp_path))
    assert records(tmp_path).measured(ONE) == {}


def test_a_default_that_is_wrong_stops_the_tuning(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="the default schedule gives a wrong product"):
        tune(FakeBench({CUTS[0]: quick(1.0)}), records(tmp_path))


def test_progress_says_what_is_left() -> None:
    step = TuningStep(12, 40, "linear 1x4096 to 272 bfloat16", 3.25, 61.4)
    assert str(step) == "12 of 40 trials, linear 1x4096 to 272 bfloat16: best 3.2 us, 61 s left"
    assert "failed" in str(replace(step, microseconds=None))
