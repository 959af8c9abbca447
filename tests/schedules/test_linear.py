import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.isa import AVX2, AVX512, SSE, VectorIsa
from dspark_compiler.schedules.layouts import PanelLayouts
from dspark_compiler.schedules.linear import packed_linear
from dspark_compiler.schedules.linear_schedule import (
    LinearSchedule,
    LinearWorkload,
    candidate_schedules,
    default_schedule,
    packed_shape,
    workload_of,
)
from dspark_compiler.schedules.tir import Arg
from tests.schedules.kernels import MACHINES, WIDEST, build, from_bfloat16_bits, normal, to_bfloat16_bits


def product(
    work: LinearWorkload,
    x: np.ndarray,
    packed: np.ndarray,
    schedule: LinearSchedule | None = None,
    isa: VectorIsa = WIDEST,
) -> np.ndarray:
    y = np.full((work.rows, work.features), np.nan, np.float32)
    build(packed_linear("linear", work, isa, schedule), isa)(x, packed, y)
    return y


@settings(max_examples=6, deadline=None)
@given(
    rows=st.integers(1, 20),
    features=st.integers(1, 90),
    depth=st.integers(1, 70),
    isa=st.sampled_from(list(MACHINES)),
)
def test_any_size_is_the_product(rows: int, features: int, depth: int, isa: VectorIsa) -> None:
    x, weight = normal(rows, depth), normal(features, depth, seed=1)
    y = product(LinearWorkload(rows, features, depth), x, PanelLayouts(isa).pack(weight), isa=isa)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "uint16"])
def test_half_precision_weights_are_widened_exactly(dtype: str) -> None:
    x, weight = normal(3, 33), normal(70, 33, seed=1)
    stored = weight.astype(np.float16) if dtype == "float16" else to_bfloat16_bits(weight)
    exact = stored.astype(np.float32) if dtype == "float16" else from_bfloat16_bits(stored)
    y = product(LinearWorkload(3, 70, 33, dtype), x, PanelLayouts(WIDEST).pack(stored))
    np.testing.assert_allclose(y, x.astype(np.float64) @ exact.T.astype(np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y, product(LinearWorkload(3, 70, 33), x, PanelLayouts(WIDEST).pack(exact)))


def test_a_row_is_the_same_for_any_number_of_rows() -> None:
    depth, features = 200, 3 * WIDEST.panel + 5
    x, packed = normal(128, depth), PanelLayouts(WIDEST).pack(normal(features, depth, seed=1))
    whole = product(LinearWorkload(128, features, depth), x, packed)
    for rows in (1, 8, 13):
        part = product(LinearWorkload(rows, features, depth), x[:rows].copy(), packed)
        np.testing.assert_array_equal(part, whole[:rows])


def test_a_schedule_changes_no_bit() -> None:
    work = LinearWorkload(5, 5 * WIDEST.panel - 3, 40)
    x, packed = normal(5, 40), PanelLayouts(WIDEST).pack(normal(work.features, 40, seed=1))
    expected = product(work, x, packed)
    for schedule in (LinearSchedule(1, 4, 32), LinearSchedule(2, 2, 0), LinearSchedule(3, 1, 16)):
        np.testing.assert_array_equal(product(work, x, packed, schedule), expected)


def test_epilogue_sees_row_feature_and_extras() -> None:
    work = LinearWorkload(2, WIDEST.panel + 1, 8)
    x, weight = normal(2, 8), normal(work.features, 8, seed=1)
    bias, residual = normal(work.features, seed=2), normal(2, work.features, seed=3)
    function = packed_linear(
        "linear",
        work,
        WIDEST,
        extras=(Arg("bias", (work.features,)), Arg("residual", (2, work.features))),
        epilogue=lambda value, row, feature, extra: value + extra[0][feature] + extra[1][row, feature],
    )
    y = np.zeros((2, work.features), np.float32)
    build(function)(x, PanelLayouts(WIDEST).pack(weight), bias, residual, y)
    np.testing.assert_allclose(y, x @ weight.T + bias + residual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_linear_under_any_schedule(activation: str) -> None:
    rows, half, depth = 9, 2 * WIDEST.panel, 40
    work = LinearWorkload(rows, 2 * half, depth, gated=True)
    x, weight = normal(rows, depth), normal(2 * half, depth, seed=1)
    gate, up = np.split(x.astype(np.float64) @ weight.T.astype(np.float64), 2, axis=1)
    if activation == "silu":
        expected = gate / (1 + np.exp(-gate)) * up
    else:
        expected = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    results = []
    for schedule in (None, LinearSchedule(4, 2, 32), LinearSchedule(2, 1)):
        y = np.zeros((rows, half), np.float32)
        build(gated_linear("gated", work, WIDEST, schedule, activation=activation))(
            x, PanelLayouts(WIDEST).pack(weight), y
        )
        results.append(y)
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-4)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("isa", [SSE, AVX2, AVX512])
@pytest.mark.parametrize("rows", [1, 2, 8, 13, 16, 128])
def test_candidates_fit_the_registers_and_start_with_the_default(rows: int, isa: VectorIsa, gated: bool) -> None:
    work = LinearWorkload(rows, 4 * isa.panel, 64, gated=gated)
    candidates = candidate_schedules(work, isa)
    assert candidates[0] == default_schedule(work, isa)
    assert len(set(candidates)) == len(candidates) >= 2
    assert all(1 <= c.rows * c.panels <= isa.max_rows and c.panels <= (2 if gated else 4) for c in candidates)


def test_sixteen_rows_are_two_equal_tiles() -> None:
    assert default_schedule(LinearWorkload(16, 64, 64), AVX512).rows == 8


def test_packing_pads_the_last_panel_with_zeros() -> None:
    weight = normal(WIDEST.panel + 2, 3)
    packed = PanelLayouts(WIDEST).pack(weight)
    assert packed.shape == packed_shape(WIDEST.panel + 2, 3, WIDEST)
    np.testing.assert_array_equal(packed[1, :, :2], weight[WIDEST.panel :].T)
    assert not packed[1, :, 2:].any()


def test_the_workload_can_be_read_off_the_function() -> None:
    work = LinearWorkload(2, 70, 9, "uint16")
    function = packed_linear("linear", work, WIDEST)
    assert workload_of(function) == work
    assert workload_of(function.without_attr("dspark.linear")) is None
