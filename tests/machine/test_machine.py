"""What is said of the machine must be possible, and measured."""

import numpy as np
import pytest

from dspark_compiler.machine.bandwidth import ReadBandwidth
from dspark_compiler.machine.processor import Processor, cores, processor


def test_bandwidth_is_that_of_the_slowest_thing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    bandwidth = ReadBandwidth(threads=2, buffer_bytes=64 << 20)
    first = bandwidth.measure(times=2)
    assert 1e8 < first < 2e12
    assert bandwidth.measure(times=1) >= first  # the best so far


def test_bandwidth_counts_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("dspark_compiler.machine.bandwidth.time.perf_counter", lambda: next(clock))
    assert ReadBandwidth(threads=3, buffer_bytes=3 << 20).measure(times=1) == (3 << 20) / 0.5


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
