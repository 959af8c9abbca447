"""What is said of the machine must be possible, and measured."""

from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.machine import load
from dspark_compiler.machine.bandwidth import ReadBandwidth
from dspark_compiler.machine.load import RestWatch
from dspark_compiler.machine.processor import Processor, cores, processor


def test_bandwidth_is_possible() -> None:
    assert 1e8 < ReadBandwidth(threads=2, buffer_bytes=64 << 20).measure(times=2) < 2e12


def test_bandwidth_is_the_best_of_a_round_and_the_median_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 4.0, 5.0, 5.0, 13.0, 13.0, 15.0, 15.0, 19.0, 19.0, 27.0])  # 4 1, 8 2, 4 8 seconds
    monkeypatch.setattr("dspark_compiler.machine.bandwidth.time.perf_counter", lambda: next(clock))
    bandwidth = ReadBandwidth(threads=3, buffer_bytes=3 << 20)
    assert bandwidth.measure(times=1) == 3 << 20  # every byte once
    assert bandwidth.measure(times=1) == 3 << 19
    assert bandwidth.measure(times=1) == 3 << 18
    assert bandwidth.bytes_per_second == 3 << 19


def test_the_buffer_is_not_all_one_page() -> None:
    parts = ReadBandwidth(threads=1, buffer_bytes=1 << 20)._parts
    assert all(np.all(part == 1) for part in parts)


def test_processor_names_this_machine() -> None:
    found = processor()
    assert found.name
    assert found.cores == cores() >= 1
    assert found.memory_bytes is None or found.memory_bytes > 1 << 28


def test_processor_as_text() -> None:
    assert str(Processor("Fast 9000", 1, 3 << 30)) == "Fast 9000, 1 core, 3 GiB"
    assert str(Processor("Fast 9000", 4, None)) == "Fast 9000, 4 cores"


def test_busy_cores_are_those_of_the_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "_STAT", stat)
    lines = iter(["cpu 100 0 0 800 100 0 0 0 7 7", "cpu 125 10 5 850 110 0 0 0 9 9"])  # 40 busy of 100 ticks

    def tick(seconds: float = 0) -> None:
        stat.write_text(next(lines) + "\ncpu0 1\ncpu1 1\ncpu2 1\ncpu3 1\nintr 5\n")

    tick()
    monkeypatch.setattr(load.time, "sleep", tick)
    rest = RestWatch()
    assert rest.busy_cores == 0
    rest.pause(1)
    assert rest.busy_cores == pytest.approx(0.4 * 4)


def test_without_proc_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_STAT", tmp_path / "none")
    rest = RestWatch()
    rest.pause(0)
    assert rest.busy_cores == 0
