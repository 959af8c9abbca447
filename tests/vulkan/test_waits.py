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


def _waiting(at_once: int = 1) -> tvm.tirx.PrimFunc:
    """A kernel that copies numbers as soon as they are there, some of them a thread."""

    def body(x: Buffer, y: Buffer) -> None:
        with launch((1,), _COUNT // at_once) as (_, thread):
            seen = registers(at_once)
            awaited.await_numbers([awaited.Ask(seen, (0,), x, (thread * at_once,), at_once)])
            for i in range(at_once):
                T.buffer_store(y, seen[i], [thread * at_once + i])

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


@pytest.mark.parametrize("at_once", [2, 4])
def test_neighbours_are_asked_for_at_once_and_seen_when_they_come(at_once: int) -> None:
    need_vulkan()
    (shader,) = shaders.shaders_of({"waiting": _waiting(at_once)})
    shaders.validate(shader)
    text = shader.disassembly()
    # Without the decoration a driver may keep what it has read; without the other it may read once.
    assert "Coherent" in text
    assert [line for line in text.splitlines() if f"OpLoad %v{at_once}float" in line and "Volatile" in line]
    numbers = np.arange(_COUNT, dtype=np.float32)
    found = shaders.started(_waiting(at_once))(numbers, np.zeros_like(numbers))
    np.testing.assert_array_equal(found[-1].numpy(), numbers)
