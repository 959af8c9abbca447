"""Tensors side by side."""

import numpy as np

from dspark_compiler.schedules.vulkan.beside import beside
from tests.backends.vulkan.shaders import run, shaders_of, validate
from tests.schedules.kernels import normal
from tests.vulkan.device import need_vulkan


def test_rows_lie_side_by_side() -> None:
    need_vulkan()
    kernel = beside("main", 3, (8, 20, 4))
    for shader in shaders_of({"main": kernel}):
        validate(shader)
    parts = [normal(3, count, seed=count) for count in (8, 20, 4)]
    *_, y = run(kernel, *parts, np.zeros((3, 32), np.float32))
    np.testing.assert_array_equal(y, np.concatenate(parts, 1))
