"""What a tuner can spend trials on: the candidates of a kernel template, or a search over a generated function."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tvm

from dspark_compiler.errors import LoweringError
from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.database import Records, SearchRecord
from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear import packed_linear
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload, candidate_schedules
from dspark_compiler.schedules.measure import compile_kernel, random_arguments, time_kernels
from dspark_compiler.schedules.quantized_codes import unpack_panels
from dspark_compiler.schedules.search import SearchJob, SearchWorker

_MOST_SEARCHED = 32  # schedules of one function
_SECONDS_A_CANDIDATE = 0.15


class Task(Protocol):
    """One thing to tune."""

    name: str
    seconds: float  # a decode step spends here, roughly
    capacity: int  # trials that can be spent
    spent: int  # trials on record when the task was made

    def run(self, trials: int, records: Records) -> float | None:
        """Spends trials until ``trials`` are on record; returns the best microseconds, None if that failed."""


class LinearTask:
    """The candidate schedules of one packed product, all measured in this process."""

    def __init__(self, work: LinearWorkload, target: Any, isa: VectorIsa, records: Records) -> None:
        kind = "gated linear" if work.gated else "linear"
        self.name = f"{kind} {work.rows}x{work.depth} to {work.features} {work.weight_dtype}"
        self.seconds = 0.0
        self._work, self._target, self._isa = work, target, isa
        self._candidates = candidate_schedules(work, isa)
        self.capacity = len(self._candidates)
        self.spent = len(records.measured(work).keys() & set(self._candidates))

    def run(self, trials: int, records: Records) -> float:
        """Measures candidates in order, the default first, until ``trials`` are on record.

        Raises:
            LoweringError: a candidate computes something else.
        """
        known = records.measured(self._work)
        default = self._candidates[0]
        missing = [c for c in self._candidates if c not in known][: trials - self.spent]
        # Beside a default on record, so that times of a slower moment are put on the record's footing.
        contenders = missing if default in missing else [default, *missing]
        functions = [_plain_kernel(self._work, self._isa, schedule) for schedule in contenders]
        kernels = [compile_kernel(function, self._target) for function in functions]
        arguments = random_arguments(functions[0], cold=[1])
        self._check(kernels, arguments)
        times = time_kernels(kernels, arguments, _SECONDS_A_CANDIDATE * len(kernels))
        scale = known.get(default, times[0]) / times[0]
        for schedule, microseconds in zip(contenders, times, strict=True):
            if schedule in missing:
                records.add(self._work, schedule, microseconds * scale)
        return min(records.measured(self._work).values())

    def _check(self, kernels: Sequence[Callable[..., Any]], arguments: list[list[Any]]) -> None:
        """Every candidate must give the same bits, and those must be the product."""
        x, *weight, y = arguments[0]
        results = []
        for kernel in kernels:
            kernel(x, *weight, y)
            results.append(y.numpy())
        # Inputs are about 1 in size: the error of an in-order float32 sum stays well below this.
        right = np.allclose(
            results[0],
            self._expected(x.numpy(), *(part.numpy() for part in weight)),
            rtol=1e-3,
            atol=1e-5 * self._work.depth,
        )
        if not right or any(not np.array_equal(results[0], other) for other in results[1:]):
            raise LoweringError(f"{self.name}: a schedule gives a wrong product; please report it with the --arch used")

    def _expected(self, x: np.ndarray, packed: np.ndarray, *factors: np.ndarray) -> np.ndarray:
        form = WeightFormat.parse(self._work.weight_dtype)
        if form is not None:
            packed = unpack_panels(form, packed, *factors)
        elif packed.dtype == np.uint16:
            packed = (packed.astype(np.uint32) << 16).view(np.float32)
        weight = packed.swapaxes(1, 2).reshape(-1, self._work.depth)[: self._work.features]
        product: np.ndarray = x.astype(np.float64) @ weight.T.astype(np.float64)
        if not self._work.gated:
            return product
        gate, up = product[:, : product.shape[1] // 2], product[:, product.shape[1] // 2 :]
        gated: np.ndarray = gate / (1 + np.exp(-gate)) * up
        return gated


class SearchTask:
    """MetaSchedule's search over one generated function, in the worker."""

    def __init__(self, key: str, name: str, job: SearchJob, worker: SearchWorker, records: Records) -> None:
        self.name = name
        self.seconds = 0.0
        self.capacity = _MOST_SEARCHED
        self._key, self._job, self._worker = key, job, worker
        self._before = records.searched(key)
        self.spent = 0 if self._before is None else self._before.trials

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


def _plain_kernel(work: LinearWorkload, isa: VectorIsa, schedule: LinearSchedule) -> tvm.tirx.PrimFunc:
    """The kernel without bias or residual: what is done to the sums does not sway which schedule is best."""
    if work.gated:
        return gated_linear("main", work, isa, schedule, activation="silu")
    return packed_linear("main", work, isa, schedule)
