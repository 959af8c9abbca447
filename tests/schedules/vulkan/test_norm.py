"""Norms that are handed on, against those behind barriers."""

import numpy as np
import pytest

from dspark_compiler.schedules.simt import norm
from dspark_compiler.schedules.vulkan.norm import rms_norm
from tests.backends.vulkan.shaders import run, shaders_of, validate
from tests.schedules.kernels import normal
from tests.vulkan.device import need_vulkan


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rows", "depth"), [(1, 576), (3, 40), (8, 1111), (9, 64), (2, 9000)])
def test_norms(rows: int, depth: int, weighted: bool) -> None:
    need_vulkan()
    given = [normal(rows, depth), *([normal(depth, seed=2)] if weighted else []), np.zeros((rows, depth), np.float32)]
    kernel = rms_norm("main", rows, depth, 1e-5, weighted=weighted)
    for shader in shaders_of({"main": kernel}):
        validate(shader)
    mine, plain = run(kernel, *given)[-1], run(norm.rms_norm("main", rows, depth, 1e-5, weighted=weighted), *given)[-1]
    exact = given[0] / np.sqrt((given[0].astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(mine, exact * (given[1] if weighted else 1.0), rtol=1e-5)
    np.testing.assert_allclose(mine, plain, rtol=1e-6)
