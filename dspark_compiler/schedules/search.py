"""MetaSchedule's search over the functions Relax generates, in a process of its own.

The search, its compiler and its measuring run in one worker: a candidate that crashes takes no compile with it, and a
patch the search needs stays out of this process. Only schedules that give the very bits of the rules' schedule are
kept, so results do not depend on what a search found.
"""

import inspect
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.support.popen_pool import PopenWorker

from dspark_compiler.schedules.measure import Arguments, Kernel, compile_kernel, random_arrays, time_kernels

_BATCH = 8  # candidates the search proposes at a time
_SECONDS_A_KERNEL = 0.03
_CLEARLY_FASTER = 0.97
_START_LIMIT, _TRIAL_LIMIT = 180.0, 20.0  # seconds a search may take, in all and for each trial
_JOBS_A_CORE = (-1, 1, 16)  # parallel tasks; -1: none, since waking threads costs more than a small function takes
_VECTOR_EXTENTS = (16, 64)


@dataclass(frozen=True)
class SearchJob:
    """One function to search: unscheduled, and as the rules schedule it."""

    function: tvm.tirx.PrimFunc
    by_rules: tvm.tirx.PrimFunc
    target: Any


@dataclass(frozen=True)
class SearchResult:
    """The best trace (None: the rules were as fast) and microseconds of the better."""

    trace: Any | None
    microseconds: float


def searchable(module: tvm.IRModule) -> Iterator[tuple[Any, tvm.tirx.PrimFunc]]:
    """Functions without a schedule that are ours to search: not templates, not views of other shapes."""
    for variable, function in module.functions.items():
        if not isinstance(function, tvm.tirx.PrimFunc) or "s_tir" not in function.attrs:
            continue
        if "tirx.is_scheduled" not in function.attrs and not relax.analysis.has_reshape_pattern(function):
            yield variable, function


def function_key(function: tvm.tirx.PrimFunc) -> str:
    """A name for what a function computes, the same whatever it and its variables are called."""
    return f"{tvm_ffi.structural_hash(_alone(function)) & (2**64 - 1):016x}"


def trace_json(trace: Any) -> Any:
    """A trace as JSON can hold it."""
    return _plain(trace.as_json())


def apply_trace(function: tvm.tirx.PrimFunc, trace: Any) -> tvm.tirx.PrimFunc:
    """The function as a recorded trace schedules it.

    Raises:
        RuntimeError, ValueError, IndexError: the trace is not one of this function.
    """
    schedule = s_tir.Schedule(_alone(function))
    s_tir.schedule.Trace.apply_json_to_schedule(trace, schedule)
    scheduled = schedule.mod["main"].with_attr("tirx.is_scheduled", True)
    name = function.attrs.get("global_symbol")
    return scheduled.without_attr("global_symbol") if name is None else scheduled.with_attr("global_symbol", name)


class SearchWorker:
    """The worker process, started at the first search; a context that ends it."""

    def __init__(self) -> None:
        self._worker = PopenWorker(_quick_inspect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> "SearchWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.kill()

    def search(self, job: SearchJob, trials: int, seed: int) -> SearchResult | None:
        """Measures up to ``trials`` schedules; None if the worker failed or took too long; the next has a new one."""
        try:
            self._worker.send(run_search, (job, trials, seed), timeout=_START_LIMIT + _TRIAL_LIMIT * trials)
            result: SearchResult = self._worker.recv()
        except (ChildProcessError, TimeoutError, RuntimeError, ValueError):
            return None
        return result


def run_search(job: SearchJob, trials: int, seed: int) -> SearchResult:
    """The search itself, as the worker runs it."""
    context = ms.TuneContext(
        mod=_alone(job.function),
        target=job.target,
        space_generator=_space(),
        search_strategy=ms.search_strategy.EvolutionarySearch(
            population_size=64, init_min_unmeasured=_BATCH, max_fail_count=2, genetic_num_iters=2
        ),
        num_threads=1,
        rand_state=seed + 1,
    )
    bench = _Bench(job)
    context.pre_tuning(
        max_trials=trials,
        num_trials_per_iter=min(_BATCH, trials),
        design_spaces=context.generate_design_space(),
        database=bench.database,
        cost_model=ms.cost_model.CostModel.create("xgb" if find_spec("xgboost") else "random"),
    )
    while bench.measured < trials:
        candidates = context.generate_measure_candidates()
        if not candidates:
            break
        context.notify_runner_results(candidates, bench.measure(candidates))
    context.post_tuning()
    return bench.result()


class _Bench:
    """Measures candidates beside the rules' schedule, on the same arguments, and keeps the fastest."""

    def __init__(self, job: SearchJob) -> None:
        self.database = ms.database.MemoryDatabase()
        self.measured = 0
        self._target = job.target
        self._workload = self.database.commit_workload(_alone(job.function))
        self._arguments = [[tvm.runtime.tensor(array) for array in random_arrays(job.function)]]
        self._by_rules = compile_kernel(job.by_rules, job.target)
        self._reference = self._run(self._by_rules)
        self._best: tuple[float, Kernel, Any] | None = None

    def measure(self, candidates: Any) -> list[ms.runner.RunnerResult]:
        """Times a batch; candidates that do not compile or compute something else get an error instead."""
        kernels = [self._kernel(candidate) for candidate in candidates]
        good = [kernel for kernel in kernels if not isinstance(kernel, str)]
        times = iter(time_kernels(good, self._arguments, _SECONDS_A_KERNEL * len(good)) if good else [])
        results = []
        for candidate, kernel in zip(candidates, kernels, strict=True):
            self.measured += 1
            if isinstance(kernel, str):
                results.append(ms.runner.RunnerResult(None, kernel))
                continue
            microseconds = next(times)
            results.append(ms.runner.RunnerResult([microseconds * 1e-6], None))
            self._keep(candidate, kernel, microseconds)
        return results

    def result(self) -> SearchResult:
        """The verdict, after the best has met the rules' schedule once more."""
        contenders = [self._by_rules] + ([] if self._best is None else [self._best[1]])
        times = time_kernels(contenders, self._arguments, 4 * _SECONDS_A_KERNEL)
        if self._best is not None and times[1] < _CLEARLY_FASTER * times[0]:
            return SearchResult(trace_json(self._best[2]), times[1])
        return SearchResult(None, times[0])

    def _keep(self, candidate: Any, kernel: Kernel, microseconds: float) -> None:
        trace = candidate.sch.trace
        record = ms.database.TuningRecord(
            trace, self._workload, [microseconds * 1e-6], self._target, candidate.args_info
        )
        self.database.commit_tuning_record(record)
        if self._best is None or microseconds < self._best[0]:
            self._best = (microseconds, kernel, trace)

    def _kernel(self, candidate: Any) -> Kernel | str:
        try:
            kernel = compile_kernel(candidate.sch.mod["main"], self._target)
        except (RuntimeError, ValueError) as error:
            return f"does not compile: {error}"
        # Bit for bit: decode and verify run different functions, each perhaps searched, and must agree to the last bit.
        pairs = zip(self._run(kernel), self._reference, strict=True)
        same = all(np.array_equal(got, wanted) for got, wanted in pairs)
        return kernel if same else "rounds differently"

    def _run(self, kernel: Kernel) -> list[np.ndarray]:
        """All arguments after a call: whatever a function writes is among them."""
        arguments: Arguments = self._arguments[0]
        kernel(*arguments)
        return [argument.numpy() for argument in arguments]


def _space() -> ms.SpaceGenerator:
    """MetaSchedule's CPU space, once for each way to spread work over threads and vectors."""
    spaces = [_one_space(jobs, extent) for jobs in _JOBS_A_CORE for extent in _VECTOR_EXTENTS]
    return ms.space_generator.SpaceGeneratorUnion(spaces)


def _one_space(jobs: int, extent: int) -> ms.SpaceGenerator:
    """Inlining, tiling, unrolling; no rfactor (sums stay in order) and no intrinsics of fixed size."""
    rule, post, mutate = ms.schedule_rule, ms.postproc, ms.mutator
    return ms.space_generator.PostOrderApply(
        sch_rules=[
            rule.InlineConstantScalars(),
            rule.AutoInline(
                into_producer=False,
                into_consumer=True,
                inline_const_tensor=True,
                disallow_if_then_else=True,
                require_injective=True,
                require_ordered=True,
                disallow_op=["tirx.exp"],
            ),
            rule.MultiLevelTiling(
                structure="SSRSRS",
                max_innermost_factor=64,
                reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
            ),
            rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=jobs, max_vectorize_extent=extent, unroll_max_steps=[0, 16, 64]
            ),
            rule.RandomComputeLocation(),
        ],
        postprocs=[post.DisallowDynamicLoop(), post.RewriteParallelVectorizeUnroll(), post.RewriteReductionBlock()],
        mutator_probs={
            mutate.MutateTileSize(): 0.7,
            mutate.MutateComputeLocation(): 0.1,
            mutate.MutateUnroll(): 0.1,
            mutate.MutateParallel(max_jobs_per_core=16): 0.1,
        },
    )


def _plain(value: Any) -> Any:
    """A trace's JSON without TVM's own numbers and containers."""
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict | tvm.ir.Map):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value]


def _alone(function: tvm.tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _quick_inspect() -> None:
    """Makes importing TVM's tensor intrinsics, which every search does, take seconds instead of a minute.

    Their definitions call inspect.stack(), which looks for the module of every frame, among them frames of generated
    code and of the import system that belong to no file: those answers are always None. Runs in the worker only.
    """
    original = inspect.getmodule

    def getmodule(object: object, _filename: str | None = None) -> ModuleType | None:
        name = object.f_code.co_filename if isinstance(object, FrameType) else (_filename or "")
        return None if name.startswith("<") else original(object, _filename)

    inspect.getmodule = getmodule
