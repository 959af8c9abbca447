"""Rows go through their own experts, and come out the same whatever rows there are besides."""

import numpy as np
import pytest

from dspark_compiler.schedules.expert_linear import expert_linear
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.layouts import PanelLayouts
from tests.schedules.kernels import MACHINES, WIDEST, build, from_bfloat16_bits, normal, to_bfloat16_bits

EXPERTS, DEPTH = 3, 20


def _run(x: np.ndarray, weight: np.ndarray, expert: np.ndarray, isa: VectorIsa = WIDEST) -> np.ndarray:
    rows, features = len(x), weight.shape[1]
    dtype = weight.dtype.name
    call = build(expert_linear("f", rows, EXPERTS, features, DEPTH, isa, weight_dtype=dtype), isa)
    y = np.zeros((rows, features), np.float32)
    call(x, PanelLayouts(isa).pack(weight), expert, y)
    return y


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("features", [7, 64, 65])
def test_against_float64(isa: VectorIsa, features: int) -> None:
    weight, x = normal(EXPERTS, features, DEPTH, seed=1), normal(5, DEPTH)
    expert = np.array([0, 2, 2, 0, 2])  # nobody asks expert 1
    expected = np.einsum("rk,rnk->rn", x.astype(np.float64), weight[expert].astype(np.float64))
    np.testing.assert_allclose(_run(x, weight, expert, isa), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_weights() -> None:
    bits, x = to_bfloat16_bits(normal(EXPERTS, 32, DEPTH, seed=1)), normal(4, DEPTH)
    expert = np.array([1, 1, 0, 2])
    expected = np.einsum("rk,rnk->rn", x.astype(np.float64), from_bfloat16_bits(bits)[expert].astype(np.float64))
    np.testing.assert_allclose(_run(x, bits, expert), expected, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    weight, x = normal(EXPERTS, 40, DEPTH, seed=1), normal(6, DEPTH)
    expert = np.array([2, 0, 1, 2, 2, 0])
    together = _run(x, weight, expert)
    for row in range(6):
        np.testing.assert_array_equal(_run(x[row : row + 1], weight, expert[row : row + 1])[0], together[row])
