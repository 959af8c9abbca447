"""A kernel that waits in vain ends, and whoever waits for the device is told, once."""

import numpy as np
import pytest
import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.vulkan import VulkanRuntime
from dspark_compiler.schedules.simt import awaited
from dspark_compiler.schedules.simt.threads import launch, registers
from dspark_compiler.schedules.tir import Arg, Buffer, kernel
from tests.backends.vulkan import shaders
from tests.vulkan.device import need_vulkan

_COUNT = 64


def _waiting() -> tvm.tirx.PrimFunc:
    """A kernel that copies numbers as soon as they are there."""

    def body(x: Buffer, y: Buffer) -> None:
        with launch((1,), _COUNT) as (_, thread):
            seen = registers(1)
            awaited.await_numbers([awaited.Ask(seen, (0,), x, (thread,))])
            T.buffer_store(y, seen[0], [thread])

    return kernel("waiting", [Arg("x", (_COUNT,)), Arg("y", (_COUNT,))], body)


def test_a_wait_that_nobody_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    need_vulkan()
    monkeypatch.setattr(awaited, "_MOST_TIMES", 8)
    (shader,) = shaders.shaders_of({"waiting": _waiting()})
    shaders.validate(shader)
    run, gpu = shaders.started(_waiting()), VulkanRuntime(0)
    numbers = np.arange(_COUNT, dtype=np.float32)
    np.testing.assert_array_equal(run(numbers, np.zeros_like(numbers))[-1].numpy(), numbers)
    for overlap, advice in ("1", "set DSPARK_VULKAN_OVERLAP=0"), ("0", "please report it with the model"):
        monkeypatch.setenv("DSPARK_VULKAN_OVERLAP", overlap)
        missing = numbers.copy()
        missing.view(np.uint32)[7] = awaited.NOTHING
        y = run(missing, np.zeros_like(numbers))[-1]
        with pytest.raises(DeviceError, match=rf"^Vulkan device 0 \(.+\): a kernel waited in vain for .+; {advice}$"):
            gpu.synchronize(0)
        gpu.synchronize(0)
        np.testing.assert_array_equal(y.numpy(), missing)
