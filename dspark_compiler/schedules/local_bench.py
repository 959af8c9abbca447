"""This machine's processor as what tuning measures on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from dspark_compiler.schedules.bench import Build, Operand, Run, Sample
from dspark_compiler.schedules.measure import Arguments, Kernel, compile_kernel, sets_to_rotate, time_kernels

_SECONDS_A_KERNEL = 0.15


@dataclass(frozen=True)
class LocalBench:
    """Kernels for ``target``, a tvm.target.Target, compiled and run in this process."""

    target: Any

    def __enter__(self) -> "LocalBench":
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""

    def prepare(self, builds: Sequence[Build]) -> Sequence[Build]:
        """See Bench."""
        return builds

    def compare(self, prepared: Sequence[Build], sample: Sample) -> list[Run]:
        """See Bench."""
        arguments = _rotating(sample)
        runs, working = [], []
        for build in prepared:
            try:
                kernel = compile_kernel(build(), self.target)
                kernel(*arguments[0])
            except (RuntimeError, ValueError) as error:
                runs.append(Run(failure=f"does not run: {str(error).strip().splitlines()[-1]}"))
                continue
            working.append((len(runs), kernel))
            runs.append(Run(arguments[0][-1].numpy()))
        for i, microseconds in _timed(working, arguments):
            runs[i] = Run(runs[i].output, microseconds)
        return runs


def _timed(working: Sequence[tuple[int, Kernel]], arguments: Sequence[Arguments]) -> list[tuple[int, float]]:
    if not working:
        return []
    places, kernels = zip(*working, strict=True)
    return list(zip(places, time_kernels(kernels, arguments, _SECONDS_A_KERNEL * len(kernels)), strict=True))


def _rotating(sample: Sample) -> list[Arguments]:
    """Argument lists to rotate through, cold operands each time others."""
    sets = sets_to_rotate(sum(operand.nbytes for operand in sample.operands if operand.cold))
    warm = {i: _tensor(operand) for i, operand in enumerate(sample.operands) if not operand.cold}
    output = tvm.runtime.tensor(np.zeros(sample.expected.shape, sample.dtype))
    return [
        [*(warm[i] if i in warm else _tensor(operand) for i, operand in enumerate(sample.operands)), output]
        for _ in range(sets)
    ]


def _tensor(operand: Operand) -> Any:
    repeats = -(-operand.shape[0] // len(operand.values))
    return tvm.runtime.tensor(np.concatenate([operand.values] * repeats)[: operand.shape[0]])
