"""A GPU as what tuning measures on: all cores compile while it runs what is done."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from tvm.support.popen_pool import PopenPoolExecutor, PopenWorker

from dspark_compiler.errors import DeviceError
from dspark_compiler.machine.gpu_kernels import Library, compile_kernels, reason, run_kernels
from dspark_compiler.schedules.bench import Build, Run, Sample

_SPARED = 2  # cores for this process and the one that runs kernels
_COMPILE_LIMIT, _RUN_LIMIT = 600.0, 120.0  # seconds for the kernels of a task


@dataclass(frozen=True)
class Prepared:
    """Kernels on their way: how many, and where they will be."""

    count: int
    libraries: Future[list[Library]]


class _LostError(Exception):
    """The process that runs kernels is gone, or of no use any more."""


class GpuBench:
    """Kernels for ``target``, a tvm.target.Target, on the first GPU; see Bench."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._pending: list[Prepared] = []
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        cores = len(os.sched_getaffinity(0))
        self._compilers = PopenPoolExecutor(max(1, cores - _SPARED), _COMPILE_LIMIT, **quiet)
        self._runner = PopenWorker(**quiet)

    def __enter__(self) -> "GpuBench":
        self._folder = TemporaryDirectory(prefix="dspark-tune-")
        return self

    def __exit__(self, *_: object) -> None:
        for prepared in self._pending:
            prepared.libraries.cancel()
        self._runner.kill()
        self._compilers.shutdown(wait=False)
        self._folder.cleanup()

    def prepare(self, builds: Sequence[Build]) -> Prepared:
        """See Bench."""
        start = os.path.join(self._folder.name, str(len(self._pending)))
        future = self._compilers.submit(compile_kernels, list(builds), self._target, start)
        self._pending.append(Prepared(len(builds), future))
        return self._pending[-1]

    def compare(self, prepared: Prepared, sample: Sample) -> list[Run]:
        """See Bench."""
        try:
            libraries = prepared.libraries.result()
        except (ChildProcessError, TimeoutError, RuntimeError) as error:
            return [Run(failure=f"does not compile: {reason(error)}")] * prepared.count
        try:
            return self._run(libraries, sample)
        except _LostError:
            return self._one_by_one(libraries, sample)

    def _run(self, libraries: Sequence[Library], sample: Sample) -> list[Run]:
        try:
            self._runner.send(run_kernels, (libraries, sample), timeout=_RUN_LIMIT)
            runs: list[Run] = self._runner.recv()
        except (ChildProcessError, TimeoutError, RuntimeError, OSError, DeviceError) as error:
            self._runner.kill()  # the next has a new one
            raise _LostError(f"does not end well: {reason(error)}") from error
        return runs

    def _one_by_one(self, libraries: Sequence[Library], sample: Sample) -> list[Run]:
        """Each kernel beside the first alone, so that the one that fails takes no other with it."""
        try:
            runs = self._run(libraries[:1], sample)
        except _LostError as error:
            return [Run(failure=str(error))] * len(libraries)
        for library in libraries[1:]:
            try:
                first, run = self._run([libraries[0], library], sample)
            except _LostError as error:
                runs.append(Run(failure=str(error)))
            else:
                # On the footing of the first one's first time.
                runs.append(replace(run, microseconds=run.microseconds * runs[0].microseconds / first.microseconds))
        return runs
