"""Tuning: the trials of a budget go where a model spends its time; what they find goes to the records.

What is on record is not measured again, so tuning can be interrupted and taken up, and a budget that is already spent
costs nothing.
"""

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import LinearWorkload, workload_of
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
    microseconds: float | None  # the best of that task; None: its search failed
    seconds_left: float


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
        trials: schedules to have on record, over all functions.
        progress: called after each function.

    Returns:
        How many trials were spent; 0 if the records held all.

    Raises:
        InputError: the records cannot be read or written.
        LoweringError: a schedule of a kernel template computes something else.
    """
    with SearchWorker() as worker:
        tasks = _tasks(module, target, isa, worker, records)
        shares = _shares(tasks, trials)
        total, done, spent, began = sum(shares), 0, 0, time.perf_counter()
        for task, share in sorted(zip(tasks, shares, strict=True), key=lambda pair: -pair[0].seconds):
            done += share
            if task.spent >= share:
                continue
            spent += share - task.spent
            best = task.run(share, records)
            if progress is not None:
                rate = (time.perf_counter() - began) / spent
                progress(TuningStep(done, total, task.name, best, rate * (total - done)))
    return spent


def _tasks(module: tvm.IRModule, target: Any, isa: VectorIsa, worker: SearchWorker, records: Records) -> list[Task]:
    calls = _calls(module)
    with target:
        scheduled = default_rules(isa)(module.clone())  # it schedules in place
    tasks: dict[Any, Task] = {}
    for variable, function in module.functions.items():
        work = workload_of(function) if isinstance(function, tvm.tirx.PrimFunc) else None
        if work is not None:
            if work not in tasks:
                tasks[work] = LinearTask(work, target, isa, records)
            tasks[work].seconds += calls.get(variable, 0.0) * _linear_seconds(work)
    for variable, function in searchable(module):
        key = function_key(function)
        if key not in tasks:
            job = SearchJob(function, scheduled[variable], target)
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
