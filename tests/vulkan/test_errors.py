"""What cannot be done is refused in one line that names the kernel, the device and the numbers."""

import re
from typing import Any

import numpy as np
import pytest
import tvm

from tests.vulkan.device import function
from tests.vulkan.kernels import axpy, described, load, module_bytes
from tests.vulkan.test_launch import DEVICE, SIZE, on_device, run

_DEVICE = r"^Vulkan device 0 \(.+, .+\): "


def refusal(error: pytest.ExceptionInfo[RuntimeError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ["int64", "warp_drive"]}, "kernel axpy needs warp_drive, which the device lacks"),
        ({"shared_bytes": 1 << 30}, r"kernel axpy needs 1073741824 bytes of shared memory, the device has \d+"),
        ({"workgroup": [64, 1024, 1024]}, r"kernel axpy needs 67108864 threads a workgroup, the device has at most"),
        ({"subgroup": 512}, r"kernel axpy needs subgroups of 512, the device has them of \d+"),
        ({"workgroup": [32, 1, 1]}, "kernel axpy: compiled for 32 threads, launched with 64"),
    ],
)
def test_a_kernel_the_device_cannot_run(fields: dict[str, Any], message: str) -> None:
    a = on_device(np.zeros(SIZE, np.float32))
    kernel = load((described(**fields), axpy()))["axpy"]
    with pytest.raises(RuntimeError, match=_DEVICE + message) as error:
        run(kernel, a, a, 1.0)
    refusal(error)


def test_too_many_groups() -> None:
    a = on_device(np.zeros(SIZE, np.float32))
    kernel = load((described(), axpy()))["axpy"]
    with pytest.raises(RuntimeError, match=_DEVICE + r"kernel axpy: 1099511627776 workgroups, the device takes \d+"):
        kernel(a, a, 1.0, SIZE, 1 << 40, 64)
    with pytest.raises(RuntimeError, match=_DEVICE + "kernel axpy: takes 6 arguments, 3 were given"):
        kernel(a, a, 1.0)
    with pytest.raises(RuntimeError, match=_DEVICE + "kernel axpy: a buffer was expected, float was given"):
        kernel(a, 1.0, 1.0, SIZE, 1, 64)


def test_a_buffer_of_the_host() -> None:
    a = on_device(np.zeros(SIZE, np.float32))
    kernel = load((described(), axpy()))["axpy"]
    with pytest.raises(RuntimeError, match=_DEVICE + "an address that is not in this device's memory"):
        run(kernel, tvm.runtime.tensor(np.zeros(SIZE, np.float32)), a, 1.0)


def test_a_buffer_that_is_too_large() -> None:
    most = function("max_allocation")(0)
    numbers = rf"a buffer of {(most + 4096) // 10**6}\.\d MB was asked for, the driver allows {most // 10**6}\.\d MB"
    with pytest.raises(RuntimeError, match=_DEVICE + numbers):
        tvm.runtime.empty((most + 4096,), "uint8", DEVICE)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"^there is no Vulkan device 99: this machine has \d+, counted from 0$"):
        tvm.runtime.empty((1,), "float32", tvm.device("vulkan", 99))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda data: data[:10], "not one this version reads"),
        (lambda data: b"DSPKVK99" + data[8:], "not one this version reads"),
        (lambda data: data[:40], "cut short"),
        (lambda data: data[:-8], "kernel axpy: its SPIR-V is not in the module"),
        (lambda data: data.replace(b'"kernels"', b'"kettles"'), "lacks a field kernels"),
        (lambda data: data.replace(b'{"kernels"', b'["kernels"'), "its description is no JSON"),
        (lambda data: data.replace(b'"int32"', b'"int31"'), "kernel axpy: type int31 cannot be given"),
        (
            lambda data: data.replace(b'"blockIdx.x"', b'"blockIdx.w"'),
            "kernel axpy: unknown launch parameter blockIdx.w",
        ),
        (lambda data: data.replace(b"\x03\x02\x23\x07", b"\x00\x02\x23\x07"), "does not begin like SPIR-V"),
    ],
)
def test_bytes_that_are_no_module(broken: Any, message: str) -> None:
    data = broken(module_bytes((described(), axpy())))
    with pytest.raises(RuntimeError, match="^Vulkan module: .*" + re.escape(message)):
        tvm.get_global_func("ffi.Module.load_from_bytes.vulkan")(data)
