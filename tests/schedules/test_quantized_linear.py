"""Products with quantized weights: right for any format and size, the same bits for any number of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dspark_compiler.quantization.weight import QuantizedWeight, quantize
from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.layouts import PanelLayouts
from dspark_compiler.schedules.linear import packed_linear
from dspark_compiler.schedules.linear_schedule import (
    LinearSchedule,
    LinearWorkload,
    candidate_schedules,
    default_schedule,
    workload_of,
)
from dspark_compiler.schedules.local_bench import LocalBench
from dspark_compiler.schedules.panel_linears import PanelLinears
from dspark_compiler.schedules.quantized_codes import pack_nibbles, unpack_nibbles, unpack_panels
from dspark_compiler.schedules.tuning_tasks import LinearTask
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

FORMATS = ("int8", "int8-g32", "float8_e4m3", "int4-g64", "int4-g32", "int4-g32-offsets", "int8-g32-offsets")


def made(tag: str, features: int, depth: int, seed: int = 1) -> QuantizedWeight:
    form = WeightFormat.parse(tag)
    assert form is not None
    plain = WeightFormat(form.codes, form.group)
    weight = quantize(torch.from_numpy(normal(features, depth, seed=seed)), plain)
    offsets = torch.from_numpy(normal(*weight.scales.shape, seed=seed + 1)) if form.offsets else None
    return QuantizedWeight(form, weight.codes, weight.scales, offsets)


def packed(weight: QuantizedWeight, isa: VectorIsa, half: bool = False) -> list[np.ndarray]:
    layouts = PanelLayouts(isa)
    codes = weight.codes.view(torch.uint8) if weight.codes.dtype is torch.float8_e4m3fn else weight.codes
    factors = [(weight.scales, half)] + ([] if weight.offsets is None else [(weight.offsets, False)])
    return [
        layouts.pack_codes(weight.format, codes.numpy()),
        *(layouts.pack_factors(weight.format, factor.numpy(), halved) for factor, halved in factors),
    ]


def product(
    weight: QuantizedWeight, x: np.ndarray, isa: VectorIsa = WIDEST, schedule: LinearSchedule | None = None
) -> np.ndarray:
    work = LinearWorkload(x.shape[0], weight.codes.shape[0], x.shape[1], weight.format.tag)
    y = np.full((work.rows, work.features), np.nan, np.float32)
    build(packed_linear("linear", work, isa, schedule), isa)(x, *packed(weight, isa), y)
    return y


def expected(weight: QuantizedWeight, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weight.dequantized().double().numpy().T


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("tag", FORMATS)
def test_the_product_is_that_of_the_numbers_the_codes_stand_for(tag: str, isa: VectorIsa) -> None:
    weight, x = made(tag, 2 * isa.panel + 5, 192), normal(7, 192)
    np.testing.assert_allclose(product(weight, x, isa), expected(weight, x), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("tag", ["int8", "int4-g64", "int4-g32-offsets"])
def test_neither_rows_nor_schedule_change_a_bit(tag: str) -> None:
    weight, x = made(tag, 5 * WIDEST.panel - 3, 128), normal(13, 128)
    whole = product(weight, x)
    for rows in (1, 8):
        np.testing.assert_array_equal(product(weight, x[:rows].copy()), whole[:rows])
    for schedule in (LinearSchedule(1, 4, 32), LinearSchedule(2, 3), LinearSchedule(3, 2)):
        np.testing.assert_array_equal(product(weight, x, schedule=schedule), whole)


@pytest.mark.parametrize("tag", ["int8", "float8_e4m3", "int4-g64", "int4-g32-offsets"])
def test_scales_may_be_halves(tag: str) -> None:
    weight, x = made(tag, WIDEST.panel, 64), normal(2, 64)
    halved = QuantizedWeight(weight.format, weight.codes, weight.scales.half().float(), weight.offsets)
    work = LinearWorkload(2, WIDEST.panel, 64, tag, scale_dtype="float16")
    y = np.zeros((2, WIDEST.panel), np.float32)
    build(packed_linear("linear", work, WIDEST))(x, *packed(halved, WIDEST, half=True), y)
    np.testing.assert_allclose(y, expected(halved, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tag", ["int8", "int4-g32-offsets"])
def test_gated_linear_under_any_schedule(tag: str) -> None:
    half, depth = 2 * WIDEST.panel, 64
    weight, x = made(tag, 2 * half, depth), normal(9, depth)
    work = LinearWorkload(9, 2 * half, depth, tag, gated=True)
    gate, up = np.split(expected(weight, x), 2, axis=1)
    results = []
    for schedule in (None, LinearSchedule(2, 1, 32)):
        y = np.zeros((9, half), np.float32)
        build(gated_linear("gated", work, WIDEST, schedule, activation="silu"))(x, *packed(weight, WIDEST), y)
        results.append(y)
    np.testing.assert_allclose(results[0], gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(results[0], results[1])


def test_nibbles_come_back() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (3, 32, 16), dtype=np.int8)
    words = pack_nibbles(codes)
    assert words.shape == (3, 4, 16)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(unpack_nibbles(words), codes)


def test_the_workload_can_be_read_off_the_function_and_its_schedules_fit() -> None:
    work = LinearWorkload(1, 70, 64, "int4-g32", scale_dtype="float16")
    assert workload_of(packed_linear("linear", work, WIDEST)) == work
    assert candidate_schedules(work, WIDEST)[0] == default_schedule(work, WIDEST)


@pytest.mark.parametrize("tag", [*FORMATS, "int4-g128"])
def test_a_tag_says_the_format(tag: str) -> None:
    form = WeightFormat.parse(tag)
    assert form is not None
    assert form.tag == tag
    assert WeightFormat.parse("float32") is None
    assert WeightFormat.parse("uint16") is None


@pytest.mark.parametrize("tag", FORMATS)
def test_panels_come_back(tag: str) -> None:
    weight = made(tag, 2 * WIDEST.panel, 64)
    panels = unpack_panels(weight.format, *packed(weight, WIDEST))
    rows = panels.swapaxes(1, 2).reshape(-1, 64)
    np.testing.assert_allclose(rows, weight.dequantized().numpy(), rtol=1e-6, atol=1e-6)


def test_schedules_are_tuned(tmp_path: Path) -> None:
    records = Records("here", [], tmp_path)
    for tag in ("int8", "int4-g32-offsets"):
        work = LinearWorkload(1, 2 * WIDEST.panel, 64, tag)
        task = LinearTask(work, PanelLinears(WIDEST), LocalBench(MACHINES[WIDEST]), records)
        task.prepare(2, records)
        assert task.run(2, records) > 0
        assert len(records.measured(work)) == 2
