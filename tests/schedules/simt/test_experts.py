"""Mixtures of experts on Vulkan devices."""

import numpy as np
import pytest

from dspark_compiler.schedules.simt.experts import expert_linear, topk
from dspark_compiler.schedules.simt.layouts import RowLayouts
from tests.backends.vulkan.shaders import run
from tests.vulkan.device import need_vulkan


def test_topk_takes_the_lower_column_of_equals() -> None:
    need_vulkan()
    x = np.array([[1, 5, 5, -2, 5], [3, 3, 3, 3, 3], [-1, -5, -3, -2, -4]], np.float32)
    *_, values, indices = run(topk("main", 3, 5, 3), x, np.zeros((3, 3), np.float32), np.zeros((3, 3), np.int64))
    order = np.argsort(-x, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis=1))


@pytest.mark.parametrize("depth", [96, 50])
def test_each_row_goes_through_its_expert(depth: int) -> None:
    need_vulkan()
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((5, depth)), random.standard_normal((3, 20, depth))
    x, weight = x.astype(np.float32), weight.astype(np.float16)
    expert = np.array([2, 0, 1, 2, 2])
    kernel = expert_linear("main", 5, 3, 20, depth, weight_dtype="float16")
    packed = np.ascontiguousarray(RowLayouts("float16").pack(weight))
    found = run(kernel, x, packed, expert, np.zeros((5, 20), np.float32))[-1]
    exact = np.einsum("rk,rnk->rn", x.astype(np.float64), weight[expert].astype(np.float64))
    np.testing.assert_allclose(found, exact, atol=1e-4)
