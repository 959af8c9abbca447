"""Recordings: remembered instead of run, replayed in order with everything else."""

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.vulkan.device import function, need_assembler, need_vulkan
from tests.vulkan.kernels import axpy, described, load
from tests.vulkan.test_launch import SIZE, on_device, run


@pytest.fixture(scope="module")
def kernel() -> Any:
    need_vulkan()  # which also loads the runtime; the fixture of every test comes after this one
    return load((described(), axpy()))["axpy"]


def recorded(work: Any) -> int:
    function("begin_recording")(0)
    work()
    return function("end_recording")(0)


def test_nothing_runs_before_it_is_replayed(kernel: Any) -> None:
    x = np.arange(SIZE, dtype=np.float32)
    a, b, c = on_device(x), on_device(np.zeros_like(x)), on_device(np.zeros_like(x))

    def step() -> None:
        run(kernel, a, b, 1.0)
        run(kernel, b, c, 1.0)

    recording = recorded(step)
    np.testing.assert_array_equal(c.numpy(), 0)
    for _ in range(3):
        function("replay")(0, recording)
    np.testing.assert_array_equal(b.numpy(), 3 * x)
    np.testing.assert_array_equal(c.numpy(), 6 * x)  # 1 + 2 + 3: each replay sees what the last one wrote
    run(kernel, a, b, 1.0)
    function("replay")(0, recording)
    np.testing.assert_array_equal(c.numpy(), 11 * x)
    function("forget")(0, recording)
    with pytest.raises(RuntimeError, match="a recording that does not exist"):
        function("replay")(0, recording)


def test_arguments_by_address_stay_with_the_recording() -> None:
    kernel = load((described(by_address=True), axpy(by_address=True)))["axpy"]
    x = np.arange(SIZE, dtype=np.float32)
    a, b = on_device(x), on_device(np.zeros_like(x))
    recording = recorded(lambda: [run(kernel, a, b, float(i % 5)) for i in range(1500)])
    for _ in range(2):
        function("replay")(0, recording)
        run(kernel, a, b, 0.0)
    np.testing.assert_array_equal(b.numpy(), 2 * x * 300 * sum(range(5)))
    function("forget")(0, recording)


def test_a_recording_outlives_its_module() -> None:
    need_assembler()  # before anything is recorded: a skipped test would leave the rest of its process recording
    x = np.arange(SIZE, dtype=np.float32)
    a, b = on_device(x), on_device(np.zeros_like(x))
    recording = recorded(lambda: run(load((described(), axpy()))["axpy"], a, b, 1.0))
    function("replay")(0, recording)
    np.testing.assert_array_equal(b.numpy(), x)
    function("forget")(0, recording)


def test_recordings_do_not_nest_and_can_be_abandoned(kernel: Any) -> None:
    x = np.arange(SIZE, dtype=np.float32)
    a, b = on_device(x), on_device(np.zeros_like(x))
    function("begin_recording")(0)
    run(kernel, a, b, 1.0)
    with pytest.raises(RuntimeError, match="commands are being recorded already"):
        function("begin_recording")(0)
    with pytest.raises(RuntimeError, match="a copy to the host cannot be recorded"):
        b.numpy()
    function("abandon_recording")(0)
    np.testing.assert_array_equal(b.numpy(), 0)
    with pytest.raises(RuntimeError, match="no commands are being recorded"):
        function("end_recording")(0)


def test_marks_and_copies_through_mapped_memory(kernel: Any) -> None:
    """What a step does: numbers to the device, a recording, results back, the next step before they are read."""
    size = 4 * SIZE
    x = np.arange(SIZE, dtype=np.float32)
    a, b = on_device(x), on_device(np.zeros_like(x))
    host = [function("allocate_host")(0, size) for _ in range(4)]
    views = [np.ctypeslib.as_array((ctypes.c_float * SIZE).from_address(place)) for place in host]
    recording = recorded(lambda: run(kernel, a, b, 1.0))
    marks = []
    for step in range(2):
        views[step][:] = 10 + step
        function("copy")(0, a.data_ptr(), host[step], size)
        function("replay")(0, recording)
        function("copy")(0, host[2 + step], b.data_ptr(), size)
        marks.append(function("mark")(0))
    assert marks[0] < marks[1]
    for step, expected in enumerate((10, 21)):
        function("wait")(0, marks[step])
        np.testing.assert_array_equal(views[2 + step], expected)
    function("zero")(0, b.data_ptr(), size)
    function("zero")(0, b.data_ptr(), 0)
    function("copy_rows")(0, b.data_ptr() + 4, 40, a.data_ptr(), 8, 8, 3)
    expected = np.zeros(SIZE, np.float32)
    for row in range(3):
        expected[1 + 10 * row : 3 + 10 * row] = 11
    np.testing.assert_array_equal(b.numpy(), expected)
    first, last = function("stamp")(0), function("stamp")(0)
    assert 0 <= function("seconds")(0, first, last) < 1
    with pytest.raises(RuntimeError, match="a time that is not remembered"):
        function("seconds")(0, first, last + 1)
    function("forget")(0, recording)
    for place in host:
        function("release")(0, place)


def test_several_copies_arrive_behind_one_kernel(kernel: Any) -> None:
    x = np.arange(SIZE, dtype=np.float32)
    a, b, to = on_device(x), on_device(np.ones_like(x)), on_device(np.full_like(x, -1))
    run(kernel, a, b, 1.0)
    size, third = x.nbytes, x.nbytes // 12 * 4
    pieces = [(0, third), (third, third), (2 * third, size - 2 * third)]
    numbers = [n for at, length in pieces for n in (to.data_ptr() + at, b.data_ptr() + at, length)]
    function("copy_all")(0, numbers)
    np.testing.assert_array_equal(to.numpy(), x + 1)
    with pytest.raises(RuntimeError, match="bytes"):
        function("copy_all")(0, [to.data_ptr(), a.data_ptr(), size, to.data_ptr(), a.data_ptr(), 1 << 30])


def test_a_recording_runs_between_copies(kernel: Any) -> None:
    x = np.arange(SIZE, dtype=np.float32)
    source, a, b, to = (
        on_device(x),
        on_device(np.zeros_like(x)),
        on_device(np.ones_like(x)),
        on_device(np.zeros_like(x)),
    )
    recording = recorded(lambda: run(kernel, a, b, 1.0))
    before = [a.data_ptr(), source.data_ptr(), x.nbytes]
    after = [to.data_ptr(), b.data_ptr(), x.nbytes]
    for turn in range(1, 4):
        mark = function("run")(0, before, recording, after)
        assert function("mark")(0) == mark, "there is nothing behind it"
        function("wait")(0, mark)
        np.testing.assert_array_equal(to.numpy(), turn * x + 1)
    function("run")(0, [b.data_ptr(), source.data_ptr(), x.nbytes], 0, [])
    np.testing.assert_array_equal(b.numpy(), x)
    function("forget")(0, recording)
    with pytest.raises(RuntimeError, match="a recording that does not exist"):
        function("run")(0, [], recording, [])
