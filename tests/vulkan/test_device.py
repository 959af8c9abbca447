"""The executor's device on Vulkan: calls as recordings, tensors from call to call, numbers back in time."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from dspark_compiler.artifact import EntrySpec, NamedTensor, TensorInfo
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu_memory import Slab, upload
from dspark_compiler.runtime.vulkan import VulkanRuntime
from dspark_compiler.runtime.vulkan_device import VulkanDevice
from tests.vulkan.device import function
from tests.vulkan.kernels import axpy, described, load
from tests.vulkan.test_launch import SIZE, run

_VECTOR = NamedTensor("x", (SIZE,), "float32")
SPEC = EntrySpec("decode", 1, 1, (_VECTOR,), ("sum",), ("w",), (NamedTensor("y", (SIZE,), "float32"),))
PLACED = dataclasses.replace(SPEC, destinations=("y",))


@pytest.fixture
def device() -> VulkanDevice:
    return VulkanDevice(VulkanRuntime(0), 0)


class Adder:
    """A compiled function: adds x and twice w to a state, and returns a copy of it, in ``y`` if that is given."""

    def __init__(self, device: VulkanDevice) -> None:
        self._kernel = load((described(), axpy()))["axpy"]
        self._slab = Slab(device.cuda, {"y": _VECTOR}, device.where)
        self.runs = 0

    def __call__(self, x: Any, total: Any, w: Any, y: Any = None) -> Any:
        self.runs += 1
        run(self._kernel, x, total, 1.0)
        run(self._kernel, w, total, 2.0)
        y = y or self._slab.tensors["y"]
        function("copy")(0, y.data_ptr(), total.data_ptr(), 4 * SIZE)
        return y


@pytest.mark.parametrize("spec", [SPEC, PLACED], ids=["copied", "placed"])
def test_a_call_is_recorded_once_and_replayed(device: VulkanDevice, spec: EntrySpec) -> None:
    shared = device.slab({"sum": _VECTOR, "w": _VECTOR})
    upload(device.cuda, {"sum": np.zeros(SIZE, np.float32), "w": np.ones(SIZE, np.float32)}, shared)
    adder = Adder(device)
    call = device.call(spec, adder, shared.tensors)
    expected = np.zeros(SIZE, np.float32)
    fetched = []
    for step in range(6):
        x = np.full(SIZE, step, np.float32)
        expected = expected + x + 2
        fetched.append((device.fetch(call(x=x)["y"]), expected))
    for found, wanted in reversed(fetched):  # each as it was then
        np.testing.assert_array_equal(found.arrays()[0], wanted)
    assert adder.runs == 2
    assert device.obstacle is None
    assert device.peak_memory_bytes() > 0


@pytest.mark.parametrize("spec", [SPEC, PLACED], ids=["copied", "placed"])
def test_what_a_call_returns_is_given_to_the_next(device: VulkanDevice, spec: EntrySpec) -> None:
    shared = device.slab({"sum": _VECTOR, "w": _VECTOR})
    arrays = {"sum": np.zeros(SIZE, np.float32), "w": np.arange(SIZE, dtype=np.float32)}
    upload(device.cuda, arrays, shared)
    first, second = (device.call(spec, Adder(device), shared.tensors) for _ in range(2))
    total = np.zeros(SIZE, np.float32)
    for _ in range(4):
        made = first(x=np.ones(SIZE, np.float32))
        total = total + 1 + 2 * arrays["w"]
        result = second(x=made["y"])
        total = total + total + 2 * arrays["w"]
        (found,) = device.fetch(result["y"]).arrays()
        np.testing.assert_array_equal(found, total)


def test_memory_that_tvm_gives_back_ends_recordings(device: VulkanDevice) -> None:
    import tvm

    shared = device.slab({"sum": _VECTOR, "w": _VECTOR})
    upload(device.cuda, {name: np.zeros(SIZE, np.float32) for name in ("sum", "w")}, shared)
    adder = Adder(device)
    call = device.call(SPEC, adder, shared.tensors)
    one = np.ones(SIZE, np.float32)
    call(x=one)
    with device.counted():
        tvm.runtime.empty((1,), "float32", tvm.device("vulkan", 0))
    (found,) = device.fetch(call(x=one)["y"]).arrays()
    np.testing.assert_array_equal(found, 2)
    assert adder.runs == 4


@pytest.mark.parametrize("largest", [None, 40 << 20])
def test_uploads_arrive_whole(device: VulkanDevice, largest: int | None) -> None:
    rng = np.random.default_rng(1)
    arrays = {f"w{i}": rng.integers(0, 255, size, np.uint8) for i, size in enumerate((1, 255, 35 << 20, 1 << 20))}
    described_ = {name: TensorInfo(array.shape, "uint8") for name, array in arrays.items()}
    slab = Slab(device.cuda, described_, device.where, largest)
    upload(device.cuda, arrays, slab)
    for name, array in arrays.items():
        (found,) = device.fetch(slab.tensors[name]).arrays()
        np.testing.assert_array_equal(found, array)


def test_errors_are_the_devices(device: VulkanDevice) -> None:
    with pytest.raises(DeviceError, match=r"^Vulkan device 0 \(.+\): a buffer of \d+\.\d MB was asked for"):
        Slab(device.cuda, {"huge": TensorInfo((1 << 50,), "uint8")}, device.where)
    with pytest.raises(DeviceError, match=r"^huge has 1125899\.91 GB, the device allows \d+\.\d\d GB in one piece"):
        device.slab({"huge": TensorInfo((1 << 50,), "uint8")})
    with pytest.raises(DeviceError, match=r"^there is no Vulkan device 99: this machine has"):
        VulkanRuntime(99)


def test_a_function_that_fails_while_it_is_recorded(device: VulkanDevice) -> None:
    shared = device.slab({"sum": _VECTOR, "w": _VECTOR})
    upload(device.cuda, {name: np.zeros(SIZE, np.float32) for name in ("sum", "w")}, shared)
    adder = Adder(device)

    def fail(*arguments: Any) -> Any:
        if adder.runs:
            raise RuntimeError("first line\nit went wrong")
        return adder(*arguments)

    call = device.call(SPEC, fail, shared.tensors)
    (found,) = device.fetch(call(x=np.ones(SIZE, np.float32))["y"]).arrays()
    np.testing.assert_array_equal(found, 1)
    assert device.obstacle is not None
    assert "it went wrong" in device.obstacle
