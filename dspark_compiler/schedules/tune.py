"""Tuning: the trials of a budget go where a model spends its time; what they find goes to the records.

What is on record is not measured again, so tuning can be interrupted and taken up, and a budget that is already spent
costs nothing.
"""

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.bench import Bench
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import LinearWorkload, workload_of
from dspark_compiler.schedules.linear_space import LinearSpace
from dspark_compiler.schedules.rules import default_rules
from dspark_compiler.schedules.search import SearchJob, SearchWorker, function_key, searchable
from dspark_compiler.schedules.tuning_tasks import LinearTask, SearchTask, Task

# What a call of an entry point counts against one of `decode`: a prefill comes once a prompt.
_ENTRY_WEIGHT = {"decode": 1.0, "verify": 0.25, "prefill": 1 / 64, "commit": 0.25}
_BANDWIDTH, _FLOPS, _CALL = 20e9, 100e9, 1e-6  # bytes/s, flop/s, s: a rough machine, for shares only
_CALL_OPS = ("relax.call_tir", "relax.call_tir_inplace")


@dataclass(frozen=True)
class TuningStep:
    """How far tuning is."""

    done: int  # trials spent, those on record included
    total: int
    task: str  # what was measured last
    microseconds: float | None  # the best of that task; None: it failed
    seconds_left: float

    def __str__(self) -> str:
        """The step as a line for people."""
        best = "failed" if self.microseconds is None else f"best {self.microseconds:.1f} us"
        return f"{self.done} of {self.total} trials, {self.task}: {best}, {self.seconds_left:.0f} s left"


@dataclass(frozen=True)
class Generated:
    """How functions are tuned that Relax made: by MetaSchedule, against the rules' schedule.

    Attributes:
        target: the tvm.target.Target; code for it must run here.
        isa: its vectors.
    """

    target: Any
    isa: VectorIsa


def tune(
    module: tvm.IRModule,
    linears: LinearSpace,
    bench: Bench,
    records: Records,
    *,
    trials: int,
    generated: Generated | None = None,
    progress: Callable[[TuningStep], None] | None = None,
) -> int:
    """Measures schedules for the functions of a lowered module and adds them to the records.

    The module is not changed: lower again with the records, and apply them.

    Args:
        module: as lower() returns it.
        linears: the target's packed products.
        bench: what they are measured on.
        records: where measurements are looked up and kept.
        trials: schedules to have on record, over all functions.
        generated: how functions without a template are tuned; None leaves them to the rules.
        progress: called after each function.

    Returns:
        How many trials were spent; 0 if the records held all.

    Raises:
        InputError: the records cannot be read or written.
        LoweringError: the default schedule of a kernel template computes something else.
    """
    calls = _calls(module)
    times: dict[LinearWorkload, float] = {}
    for variable, function in module.functions.items():
        work = workload_of(function) if isinstance(function, tvm.tirx.PrimFunc) else None
        if work is not None:
            key = linears.key(work)
            times[key] = times.get(key, 0.0) + calls.get(variable, 0.0) * _linear_seconds(work)
    with SearchWorker() as worker:
        tasks: list[Task] = [*linear_tasks(times, linears, bench, records)]
        if generated is not None:
            tasks += _search_tasks(module, generated, calls, worker, records)
        return spend(tasks, trials, records, progress)


def linear_tasks(
    seconds: Mapping[LinearWorkload, float], linears: LinearSpace, bench: Bench, records: Records
) -> list[LinearTask]:
    """A task for each product that a step spends time in, given the time."""
    tasks = []
    for work, time_spent in seconds.items():
        if time_spent > 0:
            tasks.append(LinearTask(work, linears, bench, records))
            tasks[-1].seconds = time_spent
    return tasks


def spend(
    tasks: Sequence[Task], trials: int, records: Records, progress: Callable[[TuningStep], None] | None = None
) -> int:
    """Spends trials on tasks, the one with most to gain first; returns how many were not on record yet."""
    shares = _shares(tasks, trials)
    order = sorted(zip(tasks, shares, strict=True), key=lambda pair: -pair[0].seconds)
    due = [(task, share) for task, share in order if task.spent < share]
    for task, share in due:
        task.prepare(share, records)
    done = sum(min(task.spent, share) for task, share in order)
    total, spent, began = sum(shares), 0, time.perf_counter()
    for task, share in due:
        best = task.run(share, records)
        spent += share - task.spent
        done += share - task.spent
        if progress is not None:
            rate = (time.perf_counter() - began) / spent
            progress(TuningStep(done, total, task.name, best, rate * (total - done)))
    return spent


def _search_tasks(
    module: tvm.IRModule, generated: Generated, calls: Mapping[Any, float], worker: SearchWorker, records: Records
) -> list[SearchTask]:
    with generated.target:
        scheduled = default_rules(generated.isa)(module.clone())  # it schedules in place
    tasks: dict[str, SearchTask] = {}
    for variable, function in searchable(module):
        key = function_key(function)
        if key not in tasks:
            job = SearchJob(function, scheduled[variable], generated.target)
            tasks[key] = SearchTask(key, variable.name_hint, job, worker, records)
        tasks[key].seconds += calls.get(variable, 0.0) * _call_seconds(function)
    return [task for task in tasks.values() if task.seconds > 0]


def _shares(tasks: Sequence[Task], trials: int) -> list[int]:
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


def _calls(module: tvm.IRModule) -> dict[Any, float]:
    """How often a decode step calls each function; calls of other entry points count by their weight."""
    calls: dict[Any, float] = {}
    for variable, function in module.functions.items():
        if not isinstance(function, relax.Function):
            continue
        weight = _ENTRY_WEIGHT.get(variable.name_hint.split("_")[0], 1.0)

        def visit(expr: Any, weight: float = weight) -> None:
            if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name in _CALL_OPS:
                calls[expr.args[0]] = calls.get(expr.args[0], 0.0) + weight

        relax.analysis.post_order_visit(function, visit)
    return calls


def _linear_seconds(work: LinearWorkload) -> float:
    products = work.rows * work.features * work.depth
    form = WeightFormat.parse(work.weight_dtype)
    item = np.dtype(work.weight_dtype).itemsize if form is None else form.bits / 8
    return max(work.features * work.depth * item / _BANDWIDTH, 2 * products / _FLOPS) + _CALL


def _call_seconds(function: tvm.tirx.PrimFunc) -> float:
    sizes = (
        math.prod(int(extent) for extent in param.shape) * np.dtype(str(param.dtype)).itemsize
        for param in function.params
    )
    return sum(sizes) / _BANDWIDTH + _CALL
