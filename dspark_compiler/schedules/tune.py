"""Tuning: the trials of a budget go where a model spends its time; what they find goes to the records.

A task is one workload of a kernel template, whose candidate schedules are all measured here, or one function Relax
generated, which MetaSchedule searches. Candidates on record are not measured again, so tuning can be interrupted and
taken up, and a budget that is already spent costs nothing.
"""

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.database import Records, SearchRecord
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.linear import packed_linear
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload, candidate_schedules, workload_of
from dspark_compiler.schedules.measure import compile_kernel, random_arguments, time_kernels
from dspark_compiler.schedules.rules import default_rules
from dspark_compiler.schedules.search import SearchJob, SearchWorker, function_key, searchable

# What a call of an entry point counts against one of `decode`: a prefill comes once a prompt.
_ENTRY_WEIGHT = {"decode": 1.0, "verify": 0.25, "prefill": 1 / 64, "commit": 0.25}
_BANDWIDTH, _FLOPS, _CALL = 20e9, 100e9, 1e-6  # bytes/s, flop/s, s: a rough machine, for shares only
_MOST_SEARCHED = 256  # schedules of one function
_SECONDS_A_CANDIDATE = 0.15


@dataclass(frozen=True)
class TuningStep:
    """How far tuning is."""

    done: int  # trials spent, those on record included
    total: int
    task: str  # what was measured last
    microseconds: float  # the best of that task
    seconds_left: float


class _Task(Protocol):
    name: str
    seconds: float  # a decode step spends here, roughly
    capacity: int  # trials that can be spent
    spent: int  # on record already

    def run(self, trials: int, records: Records) -> float:
        """Spends trials until ``trials`` are on record; returns the best microseconds."""


def tune(
    module: tvm.IRModule,
    target: Any,
    isa: VectorIsa,
    records: Records,
    *,
    trials: int,
    progress: Callable[[TuningStep], None] | None = None,
) -> int:
    """Measures schedules for the functions of a lowered module on this machine and adds them to the records.

    The module is not changed: lower again with the records, and apply them.

    Args:
        module: as lower() returns it.
        target: the tvm.target.Target; code for it must run here.
        isa: its vectors.
        records: where measurements are looked up and kept.
        trials: schedules to have measured, over all functions, those on record included.
        progress: called after each task.

    Returns:
        How many schedules were measured; 0 if the records held all.

    Raises:
        InputError: the records cannot be read or written.
        LoweringError: a schedule of a kernel template computes something else.
    """
    with SearchWorker() as worker:
        tasks = _tasks(module, target, isa, worker, records)
        shares = _shares(tasks, trials)
        total, done, measured, began = sum(shares), 0, 0, time.perf_counter()
        for task, share in sorted(zip(tasks, shares, strict=True), key=lambda pair: -pair[0].seconds):
            done += share
            if task.spent >= share:
                continue
            measured += share - task.spent
            best = task.run(share, records)
            if progress is not None:
                rate = (time.perf_counter() - began) / measured
                progress(TuningStep(done, total, task.name, best, rate * (total - done)))
    return measured


def _tasks(module: tvm.IRModule, target: Any, isa: VectorIsa, worker: SearchWorker, records: Records) -> list[_Task]:
    calls = _calls(module)
    with target:
        scheduled = default_rules(isa)(module.clone())  # it schedules in place
    tasks: dict[Any, _LinearTask | _SearchTask] = {}
    for variable, function in module.functions.items():
        work = workload_of(function) if isinstance(function, tvm.tirx.PrimFunc) else None
        if work is not None:
            task = tasks.setdefault(work, _LinearTask(work, target, isa, records))
            task.seconds += calls[variable] * _linear_seconds(work)
    for variable, function in searchable(module):
        key = function_key(function)
        if key not in tasks:
            tasks[key] = _SearchTask(key, variable.name_hint, function, scheduled[variable], target, worker, records)
        tasks[key].seconds += calls[variable] * _call_seconds(function)
    return [task for task in tasks.values() if task.seconds > 0]


class _LinearTask:
    """The candidate schedules of one packed product."""

    def __init__(self, work: LinearWorkload, target: Any, isa: VectorIsa, records: Records) -> None:
        kind = "gated linear" if work.gated else "linear"
        self.name = f"{kind} {work.rows}x{work.depth} to {work.features} {work.weight_dtype}"
        self.seconds = 0.0
        self._work, self._target, self._isa = work, target, isa
        self._candidates = candidate_schedules(work, isa)
        self.capacity = len(self._candidates)
        self.spent = len(records.measured(work).keys() & set(self._candidates))

    def run(self, trials: int, records: Records) -> float:
        """Measures candidates in order, the default first, until ``trials`` are on record."""
        known = records.measured(self._work)
        missing = [c for c in self._candidates if c not in known][: trials - self.spent]
        functions = [_linear(self._work, self._isa, schedule) for schedule in missing]
        kernels = [compile_kernel(function, self._target) for function in functions]
        arguments = random_arguments(functions[0], cold=[1])
        self._check(kernels, arguments)
        times = time_kernels(kernels, arguments, _SECONDS_A_CANDIDATE * len(kernels))
        for schedule, microseconds in zip(missing, times, strict=True):
            records.add(self._work, schedule, microseconds)
        return min(records.measured(self._work).values())

    def _check(self, kernels: Sequence[Callable[..., Any]], arguments: list[list[Any]]) -> None:
        """Every candidate must give the same bits, and those must be the product."""
        x, w, y = arguments[0]
        results = []
        for kernel in kernels:
            kernel(x, w, y)
            results.append(y.numpy())
        weight = w.numpy()
        if weight.dtype == np.uint16:
            weight = (weight.astype(np.uint32) << 16).view(np.float32)
        rows = weight.swapaxes(1, 2).reshape(-1, self._work.depth)[: self._work.features]
        expected = x.numpy().astype(np.float64) @ rows.T.astype(np.float64)
        if self._work.gated:
            gate, up = np.split(expected, 2, axis=1)
            expected = gate / (1 + np.exp(-gate)) * up
        # Inputs are about 1 in size: the error of an in-order float32 sum stays well below this.
        same = np.allclose(results[0], expected, rtol=1e-4, atol=1e-5 * self._work.depth)
        if not same or any(not np.array_equal(results[0], other) for other in results[1:]):
            raise LoweringError(f"{self.name}: a schedule gives a wrong product; please report it with the --arch used")


def _linear(work: LinearWorkload, isa: VectorIsa, schedule: LinearSchedule) -> tvm.tirx.PrimFunc:
    """The plain kernel of a workload: what it does to its sums does not sway which schedule is best."""
    if work.gated:
        return gated_linear("main", work, isa, schedule, activation="silu")
    return packed_linear("main", work, isa, schedule)


class _SearchTask:
    """MetaSchedule's search over one function."""

    def __init__(
        self, key: str, name: str, function: Any, by_rules: Any, target: Any, worker: SearchWorker, records: Records
    ) -> None:
        self.name = name
        self.seconds = 0.0
        self.capacity = _MOST_SEARCHED
        self._key, self._function, self._by_rules = key, function, by_rules
        self._target, self._worker = target, worker
        self._before = records.searched(key)
        self.spent = 0 if self._before is None else self._before.trials

    def run(self, trials: int, records: Records) -> float:
        """Searches with what is left of ``trials``; a search that fails counts, so that it is not tried for ever."""
        job = SearchJob(self._function, self._by_rules, self._target, trials - self.spent, seed=self.spent)
        result = self._worker.search(job)
        trace, microseconds = (None, float("inf")) if result is None else (result.trace, result.microseconds)
        if self._before is not None and self._before.microseconds <= microseconds:
            trace, microseconds = self._before.trace, self._before.microseconds
        records.add_search(SearchRecord(self._key, self.name, trace, microseconds, trials))
        return microseconds


def _shares(tasks: Sequence[_Task], trials: int) -> list[int]:
    """Trials of each task: in proportion to its time (D'Hondt), at most its capacity."""
    shares = [0] * len(tasks)
    queue = [(-task.seconds, i) for i, task in enumerate(tasks)]
    heapq.heapify(queue)
    for _ in range(trials):
        if not queue:
            break
        _, i = heapq.heappop(queue)
        shares[i] += 1
        if shares[i] < tasks[i].capacity:
            heapq.heappush(queue, (-tasks[i].seconds / (shares[i] + 1), i))
    return shares


def _calls(module: tvm.IRModule) -> Counter[Any]:
    """How often a decode step calls each function; calls of other entry points count by their weight."""
    calls: Counter[Any] = Counter()
    for variable, function in module.functions.items():
        if not isinstance(function, relax.Function):
            continue
        weight = _ENTRY_WEIGHT.get(variable.name_hint.split("_")[0], 1.0)

        def visit(expr: Any, weight: float = weight) -> None:
            if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name in _CALL_OPS:
                calls[expr.args[0]] += weight

        relax.analysis.post_order_visit(function, visit)
    return calls


_CALL_OPS = ("relax.call_tir", "relax.call_tir_inplace")


def _linear_seconds(work: LinearWorkload) -> float:
    products = work.rows * work.features * work.depth
    item = np.dtype(work.weight_dtype).itemsize
    return max(work.features * work.depth * item / _BANDWIDTH, 2 * products / _FLOPS) + _CALL


def _call_seconds(function: tvm.tirx.PrimFunc) -> float:
    sizes = (
        math.prod(int(extent) for extent in param.shape) * np.dtype(str(param.dtype)).itemsize
        for param in function.params
    )
    return sum(sizes) / _BANDWIDTH + _CALL
