"""Kernels that do not compile, or take their process with them, lose alone; on a GPU those that work are timed."""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark_compiler.errors import DeviceError, LoweringError
from dspark_compiler.machine import gpu_bench, gpu_kernels
from dspark_compiler.machine.gpu_bench import GpuBench
from dspark_compiler.machine.gpu_kernels import Library, compile_kernels
from dspark_compiler.schedules.bench import Run, Sample
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from tests.gpu import ARCH, need_compiler, need_gpu
from tests.schedules.cuda.gpu import target

LINEARS = FragmentLinears(ARCH)
WORK = LinearWorkload(3, 272, 584, "bfloat16")
SAMPLE = Sample((), np.ones((2, 2)), "float32", 1e-3)


def deadly(effects: dict[str, Callable[[], Any]]) -> Callable[..., list[Run]]:
    """In place of ``run_kernels``: some kernels have an effect, others take their number of microseconds."""

    def run(libraries: Sequence[Library], sample: Sample) -> list[Run]:
        for library in libraries:
            effects.get(library.function, int)()
        return [Run(sample.expected, 10.0 + float(library.function)) for library in libraries]

    return run


def failing() -> Callable[[], None]:
    """Travels by value: the process that runs kernels would read all that this file imports for its name."""

    def fail() -> None:
        raise DeviceError("cudaStreamSynchronize: an illegal memory access was encountered")

    return fail


def test_kernels_that_take_the_process_with_them_lose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "compile_kernels", lambda builds, *_: [Library("", str(b())) for b in builds])
    monkeypatch.setattr(gpu_bench, "run_kernels", deadly({"1": os.abort, "2": failing()}))
    with GpuBench(None) as bench:
        runs = bench.compare(bench.prepare([lambda: 0, lambda: 1, lambda: 2, lambda: 3]), SAMPLE)
    assert [run.microseconds for run in runs] == [10.0, math.inf, math.inf, 13.0]
    assert "Subprocess terminated" in str(runs[1].failure)
    assert "illegal memory access" in str(runs[2].failure)


def test_a_compiler_that_dies_fails_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "compile_kernels", lambda *_: os.abort())
    with GpuBench(None) as bench:
        runs = bench.compare(bench.prepare([lambda: 0, lambda: 1]), SAMPLE)
    assert ["does not compile" in str(run.failure) for run in runs] == [True, True]


def test_kernels_that_cannot_be_made_or_compiled_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_all(functions: dict[int, Any], _: object, path: str) -> dict[int, Library]:
        if 2 in functions:
            raise LoweringError("nvcc refused generated code")
        return {i: Library(path, str(i)) for i in functions}

    def impossible() -> None:
        raise ValueError("does not fit shared memory")

    monkeypatch.setattr(gpu_kernels, "_compile", compile_all)
    start = str(tmp_path / "k")
    found = compile_kernels([lambda: 0, impossible, lambda: 2, lambda: 3], None, start)
    assert [library.function for library in found] == ["0", "", "", "3"]
    assert found[1].failure == "cannot be made: does not fit shared memory"
    assert found[2].failure == "does not compile: nvcc refused generated code"
    assert found[0].path != found[3].path


def test_kernels_compile_together(tmp_path: Path) -> None:
    need_compiler()
    cuts = LINEARS.candidates(WORK)[:2]
    found = compile_kernels([partial(LINEARS.kernel, WORK, cut) for cut in cuts], target(ARCH), str(tmp_path / "k"))
    assert [(library.path, library.failure) for library in found] == [(str(tmp_path / "k.so"), None)] * 2
    assert (tmp_path / "k.so").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("gated", [False, True])
def test_products_are_right_and_timed(form: str, gated: bool) -> None:
    need_gpu()
    works = [LinearWorkload(rows, 288, 640, form, gated) for rows in (1, 8)]
    if form == "bfloat16":
        works.append(LinearWorkload(96, 288, 640, form, gated))
    with GpuBench(target(ARCH)) as bench:
        for work in works:
            cuts, sample = LINEARS.candidates(work)[:3], LINEARS.sample(work)
            builds = [partial(LINEARS.kernel, work, cut) for cut in cuts]
            for run in bench.compare(bench.prepare(builds), sample):
                assert run.failure is None
                assert run.output is not None
                assert sample.holds(run.output)
                assert 0.5 < run.microseconds < 1000


@pytest.mark.gpu
def test_a_launch_that_the_gpu_refuses_loses_alone() -> None:
    need_gpu()
    cuts = [*LINEARS.candidates(WORK)[:1], StreamSchedule(1, 40, 2)]  # 1280 threads
    with GpuBench(target(ARCH)) as bench:
        good, bad = bench.compare(
            bench.prepare([partial(LINEARS.kernel, WORK, cut) for cut in cuts]), LINEARS.sample(WORK)
        )
    assert good.failure is None
    assert bad.failure is not None
