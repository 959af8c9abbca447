"""What operators become: valid SPIR-V, and on a device the processor's results."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.backends.vulkan.operators import CASES, legalized, scheduled
from tests.backends.vulkan.shaders import build, shaders_of, target, validate
from tests.vulkan.device import need_vulkan


@pytest.mark.parametrize("lanes", [1, 32])
def test_every_kernel_is_valid(lanes: int) -> None:
    functions = {
        variable.name_hint: function
        for variable, function in scheduled(target(lanes)).functions.items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }
    shaders = shaders_of(functions, lanes)
    assert len(shaders) >= len(functions)
    for shader in shaders:
        validate(shader)


@pytest.mark.xdist_group("operators")  # whose process compiles them once
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_processors(name: str) -> None:
    need_vulkan()
    case = CASES[name]
    exact, found = (_call(machine, name, case.inputs) for machine in (_processor(), _device()))
    if found.dtype.kind not in "biu":
        exact, found = exact.astype(np.float64), found.astype(np.float64)
        np.testing.assert_array_less(np.abs(found - exact), (case.tolerance + 1e-12) * (1 + np.abs(exact)))
    else:
        np.testing.assert_array_equal(found, exact)


@cache
def _processor() -> tuple[Any, Any]:
    return relax.VirtualMachine(relax.build(legalized(), "llvm"), tvm.cpu()), tvm.cpu()


@cache
def _device() -> tuple[Any, Any]:
    device = tvm.device("vulkan", 0)
    return relax.VirtualMachine(build(scheduled(target())), device), device


def _call(machine: tuple[Any, Any], name: str, inputs: Any) -> np.ndarray:
    run, device = machine
    return run[name](*(tvm.runtime.tensor(array, device) for array in inputs)).numpy()
