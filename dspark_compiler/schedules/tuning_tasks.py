"""What a tuner can spend trials on: the candidates of a kernel template, or a search over a generated function."""

import math
import warnings
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.bench import Bench, Run, Sample
from dspark_compiler.schedules.database import Records, SearchRecord
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.linear_space import LinearSpace, Schedule
from dspark_compiler.schedules.search import SearchJob, SearchWorker

_MOST_SEARCHED = 32  # schedules of one function


class Task(Protocol):
    """One thing to tune."""

    name: str
    seconds: float  # a decode step spends here, roughly
    capacity: int  # trials that can be spent
    spent: int  # trials on record when the task was made

    def prepare(self, trials: int, records: Records) -> None:
        """Tells that ``run`` will be called with the same arguments, so that kernels can be compiled until then."""

    def run(self, trials: int, records: Records) -> float | None:
        """Spends trials until ``trials`` are on record; returns the best microseconds, None if that failed."""


class LinearTask:
    """The candidate schedules of one packed product."""

    def __init__(self, work: LinearWorkload, linears: LinearSpace, bench: Bench, records: Records) -> None:
        kind = "gated linear" if work.gated else "linear"
        self.name = f"{kind} {work.rows}x{work.depth} to {work.features} {work.weight_dtype}"
        self.seconds = 0.0
        self._work, self._linears, self._bench = work, linears, bench
        self._candidates = list(linears.candidates(work))
        self.capacity = len(self._candidates)
        self.spent = len(records.measured(work).keys() & set(self._candidates))

    def prepare(self, trials: int, records: Records) -> None:
        """Chooses candidates in order, the default first, until ``trials`` are on record.

        Beside them run a default on record, so that times of a slower moment are put on the record's footing, and the
        best on record, which is thus verified once more.
        """
        known = records.measured(self._work)
        on_record = [cut for cut in self._candidates if cut in known]
        best = min(on_record, key=known.__getitem__, default=self._candidates[0])
        self._missing = [cut for cut in self._candidates if cut not in known][: trials - self.spent]
        self._contenders = list(dict.fromkeys([self._candidates[0], best, *self._missing]))
        self._kernels = self._bench.prepare(
            [partial(self._linears.kernel, self._work, schedule) for schedule in self._contenders]
        )

    def run(self, trials: int, records: Records) -> float | None:
        """Measures what ``prepare`` has chosen; schedules that fail or compute something else are told of, and lose.

        Raises:
            LoweringError: the default computes something else.
        """
        sample = self._linears.sample(self._work)
        runs = self._bench.compare(self._kernels, sample)
        if runs[0].failure is not None:
            warnings.warn(f"tuning {self.name}: the default schedule {runs[0].failure}; skipped", stacklevel=2)
            return None
        times = self._verified(runs, sample)
        known = records.measured(self._work)
        before = known.get(self._contenders[0], math.inf)
        scale = before / times[0] if math.isfinite(before) else 1.0
        for schedule, microseconds in zip(self._contenders, times, strict=True):
            if schedule in self._missing or not math.isfinite(microseconds):
                records.add(self._work, schedule, microseconds * scale)
        return min(records.measured(self._work).values())

    def _verified(self, runs: Sequence[Run], sample: Sample) -> list[float]:
        """Microseconds of each run; infinite where the output is not that of the default, or of its order of sums."""
        outputs: dict[Hashable, Any] = {}
        times = []
        for schedule, run in zip(self._contenders, runs, strict=True):
            reason = self._objection(schedule, run, sample, outputs)
            if reason is not None and schedule == self._contenders[0]:
                raise LoweringError(
                    f"{self.name}: the default schedule {reason}; please report it with the --arch used"
                )
            if reason is not None:
                warnings.warn(f"tuning {self.name}: {schedule} {reason}; left out", stacklevel=3)
            times.append(run.microseconds if reason is None else math.inf)
        return times

    def _objection(self, schedule: Schedule, run: Run, sample: Sample, outputs: dict[Hashable, Any]) -> str | None:
        if run.output is None:
            return run.failure
        order = self._linears.order(schedule)
        if order not in outputs:
            if not sample.holds(run.output):
                return "gives a wrong product"
            outputs[order] = run.output
        twin = outputs[order]
        return None if run.output is twin or np.array_equal(run.output, twin) else "rounds differently"


class SearchTask:
    """MetaSchedule's search over one generated function, in the worker."""

    def __init__(self, key: str, name: str, job: SearchJob, worker: SearchWorker, records: Records) -> None:
        self.name = name
        self.seconds = 0.0
        self.capacity = _MOST_SEARCHED
        self._key, self._job, self._worker = key, job, worker
        self._before = records.searched(key)
        self.spent = 0 if self._before is None else self._before.trials

    def prepare(self, trials: int, records: Records) -> None:
        """See Task: the worker compiles as it searches."""

    def run(self, trials: int, records: Records) -> float | None:
        """Searches with what is left of ``trials``; a search that fails is told of and leaves no record."""
        result = self._worker.search(self._job, trials - self.spent, seed=self.spent)
        if result is None:
            warnings.warn(f"tuning {self.name}: the search crashed or took too long; skipped", stacklevel=2)
            return None
        trace, microseconds = result.trace, result.microseconds
        if self._before is not None and self._before.microseconds <= microseconds:
            trace, microseconds = self._before.trace, self._before.microseconds
        records.add_search(SearchRecord(self._key, self.name, trace, microseconds, trials))
        return microseconds
