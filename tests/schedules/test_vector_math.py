from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, vector
from tests.schedules.kernels import WIDEST, build

POINTS = np.concatenate([np.linspace(-90, 90, 4000), np.linspace(-1e-3, 1e-3, 91), [0.0, -1e30, 1e30, -88.0, 88.0]])
X = np.resize(POINTS, 4096).astype(np.float32)


def on_points(function: Callable[[Any], Any]) -> np.ndarray:
    def body(x: Buffer, y: Buffer) -> None:
        with T.serial(0, X.size // WIDEST.lanes) as chunk, vector(WIDEST.lanes) as lane:
            T.buffer_store(y, function(x[chunk * WIDEST.lanes + lane]), [chunk * WIDEST.lanes + lane])

    y = np.zeros_like(X)
    build(kernel("apply", [Arg("x", X.shape), Arg("y", X.shape)], body))(X, y)
    return y


def test_exp() -> None:
    y = on_points(vector_math.exp)
    inside = (X > -87) & (X < 88)
    np.testing.assert_allclose(y[inside], np.exp(X[inside].astype(np.float64)), rtol=3e-7)
    assert (y[X < -87.5] == 0).all()
    assert np.isfinite(y).all()
    assert (y[X > 89] > 1e38).all()


@pytest.mark.parametrize(
    ("function", "exact"),
    [(vector_math.tanh, np.tanh), (vector_math.sigmoid, lambda x: 1 / (1 + np.exp(-np.clip(x, -700, 700))))],
)
def test_saturating_functions(function: Callable[[Any], Any], exact: Callable[[Any], Any]) -> None:
    np.testing.assert_allclose(on_points(function), exact(X.astype(np.float64)), atol=3e-7)


def test_exp_of_zero_is_one() -> None:
    assert on_points(vector_math.exp)[X == 0][0] == 1.0
