"""The runtime library alone, with kernels written by hand: memory, copies, launches and what they are ordered by."""

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from tests.vulkan.device import function, need_vulkan
from tests.vulkan.kernels import THREADS, axpy, described, groups, load

DEVICE = tvm.device("vulkan", 0)
SIZE = 1000


def on_device(array: np.ndarray) -> Any:
    return tvm.runtime.tensor(array, DEVICE)


def run(kernel: Any, x: Any, y: Any, a: float, size: int = SIZE) -> None:
    kernel(x, y, a, size, groups(size), THREADS)


@pytest.fixture(scope="module")
def kernel() -> Any:
    need_vulkan()  # which also loads the runtime; the fixture of every test comes after this one
    return load((described(), axpy()))["axpy"]


@pytest.fixture
def x() -> np.ndarray:
    return np.arange(SIZE, dtype=np.float32)


@pytest.mark.parametrize("size", [1, 3, 65_537, 17 << 20])
def test_copies_arrive_whole(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    tensor = on_device(data)
    other = tvm.runtime.empty((size,), "uint8", DEVICE)
    tensor.copyto(other)
    np.testing.assert_array_equal(other.numpy(), data)


def test_a_device_says_what_it_is() -> None:
    assert DEVICE.exist
    assert DEVICE.device_name
    assert DEVICE.warp_size >= 1
    assert DEVICE.max_threads_per_block >= 128
    assert DEVICE.total_global_memory >= DEVICE.available_global_memory > 0
    property_of = tvm_ffi.get_global_func("device_api.vulkan.get_target_property")
    assert property_of(DEVICE, "thread_warp_size") == DEVICE.warp_size
    assert property_of(DEVICE, "supports_float32") is True
    assert property_of(DEVICE, "no such thing") is None
    assert not tvm.device("vulkan", 1000).exist


def test_dependent_launches_see_each_other(kernel: Any, x: np.ndarray) -> None:
    """Each doubles what the one before it wrote; 200 are more than one submission holds."""
    a, b = on_device(x), on_device(np.zeros_like(x))
    for _ in range(100):
        run(kernel, a, b, 1.0)
        run(kernel, b, a, -0.5)
    expected_a, expected_b = x.copy(), np.zeros_like(x)
    for _ in range(100):
        expected_b += expected_a
        expected_a += np.float32(-0.5) * expected_b
    np.testing.assert_allclose(a.numpy(), expected_a, rtol=1e-5)
    np.testing.assert_allclose(b.numpy(), expected_b, rtol=1e-5)


def test_arguments_by_address(x: np.ndarray) -> None:
    kernel = load((described(by_address=True), axpy(by_address=True)))["axpy"]
    a, b = on_device(x), on_device(x)
    for factor in range(2000):  # more than one piece of memory for arguments
        run(kernel, a, b, float(factor % 3))
    np.testing.assert_array_equal(b.numpy(), x * (1 + sum(i % 3 for i in range(2000))))


def test_views_by_address_arithmetic(kernel: Any, x: np.ndarray) -> None:
    a, b = on_device(x), on_device(x)
    address = function("allocate")(0, 4 * SIZE)
    function("copy")(0, address, a.data_ptr(), 4 * SIZE)
    function("copy")(0, b.data_ptr() + 256, address, 4 * 100)
    expected = x.copy()
    expected[64:164] = x[:100]
    np.testing.assert_array_equal(b.numpy(), expected)
    function("release")(0, address)


def test_no_groups_launch_nothing(kernel: Any, x: np.ndarray) -> None:
    a, b = on_device(x), on_device(x)
    kernel(a, b, 1.0, SIZE, 0, THREADS)
    np.testing.assert_array_equal(b.numpy(), x)


def test_memory_freed_while_in_use_lives_until_then(kernel: Any, x: np.ndarray) -> None:
    b = on_device(np.zeros_like(x))
    for value in range(50):
        a = on_device(np.full_like(x, value))
        run(kernel, a, b, 1.0)
        del a
        on_device(np.full_like(x, -1000))  # might take its place
    np.testing.assert_array_equal(b.numpy(), np.full_like(x, sum(range(50))))


def test_a_module_may_go_before_its_commands(x: np.ndarray) -> None:
    a, b = on_device(x), on_device(np.zeros_like(x))
    for _ in range(20):
        module = load((described(), axpy()))
        run(module["axpy"], a, b, 1.0)
        del module
    np.testing.assert_array_equal(b.numpy(), 20 * x)


def test_a_module_holds_several_kernels(x: np.ndarray) -> None:
    module = load((described(), axpy()), (described("other", by_address=True), axpy(by_address=True)))
    assert module.kind == "vulkan"
    assert not module.implements_function("none")
    a, b = on_device(x), on_device(x)
    run(module["axpy"], a, b, 1.0)
    run(module["other"], a, b, 1.0)
    np.testing.assert_array_equal(b.numpy(), 3 * x)


def test_allocations_come_back() -> None:
    def free() -> int:
        function("synchronize")(0)
        return int(function("memory")(0)[0])

    def kept() -> int:
        before = free()
        for _ in range(20):
            tvm.runtime.empty((10 << 20,), "float32", DEVICE)  # larger than what shares blocks is
        return before - free()

    tvm.runtime.empty((10 << 20,), "float32", DEVICE)
    # Other processes may take memory of the device meanwhile, but hardly each time.
    assert any(kept() <= 64 << 20 for _ in range(5))
