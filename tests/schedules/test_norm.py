import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.norm import layer_norm, rms_norm
from tests.schedules.kernels import MACHINES, build, normal


@settings(max_examples=4, deadline=None)
@given(
    rows=st.integers(1, 5),
    depth=st.integers(1, 100),
    weighted=st.booleans(),
    isa=st.sampled_from(list(MACHINES)),
)
def test_rms_norm(rows: int, depth: int, weighted: bool, isa: VectorIsa) -> None:
    x, weight, y = normal(rows, depth), normal(depth, seed=1), np.zeros((rows, depth), np.float32)
    build(rms_norm("norm", rows, depth, 1e-5, isa, weighted=weighted), isa)(x, *([weight] if weighted else []), y)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * (weight if weighted else 1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("weighted", "biased"), [(True, True), (True, False), (False, False)])
def test_layer_norm(weighted: bool, biased: bool) -> None:
    x, y = normal(3, 50) + 10, np.zeros((3, 50), np.float32)
    weight, bias = normal(50, seed=1), normal(50, seed=2)
    extras = [*([weight] if weighted else []), *([bias] if biased else [])]
    build(layer_norm("norm", 3, 50, 1e-5, list(MACHINES)[-1], weighted=weighted, biased=biased))(x, *extras, y)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = expected * (weight if weighted else 1) + (bias if biased else 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_the_same_alone_and_among_rows_in_parallel() -> None:
    isa, weight = list(MACHINES)[-1], normal(576, seed=1)
    x, one, many = normal(32, 576), np.zeros((1, 576), np.float32), np.zeros((32, 576), np.float32)
    build(rms_norm("norm", 32, 576, 1e-5, isa))(x, weight, many)
    build(rms_norm("norm", 1, 576, 1e-5, isa))(x[7:8].copy(), weight, one)
    np.testing.assert_array_equal(one[0], many[7])
