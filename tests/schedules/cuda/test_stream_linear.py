"""Linears of few rows for Nvidia GPUs: what the compiler makes of them, and what comes out."""

import numpy as np
import pytest

from dspark_compiler.schedules.cuda.fragments import pack_fragments
from dspark_compiler.schedules.cuda.late_norm import late_norm_input, late_norm_parts
from dspark_compiler.schedules.cuda.quantized_fragments import (
    group_shape,
    pack_bytes,
    pack_groups,
    pack_nibbles,
)
from dspark_compiler.schedules.cuda.stream_linear import stream_gated_linear, stream_linear
from dspark_compiler.schedules.cuda.stream_schedule import (
    StreamSchedule,
    candidate_schedules,
    default_stream_schedule,
)
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from tests.schedules.cuda.gpu import call, compile_for, error, gpu, report_of

ARCH = "sm_90a"
EPSILON = 1e-6
FORMS = ("bfloat16", "int8", "int4", "float8_e4m3fn")
# What codes are, the columns that share a scale, and whether there are offsets.
CODES = [("int8", 0, False), ("int4", 128, False), ("int4", 32, True), ("int4", 64, False), ("int8", 32, True)]


def test_weights_come_16_bytes_at_a_time_and_no_register_leaves() -> None:
    functions = {
        form: stream_linear(form, LinearWorkload(8, 2560, 4096, form), "bfloat16", residual=True) for form in FORMS
    }
    for stored, group, offsets in CODES[2:]:
        name, work = f"{stored}_{group}", LinearWorkload(8, 256, 4096, stored)
        functions[name] = stream_linear(name, work, "bfloat16", group=group, offsets=offsets)
    gated = LinearWorkload(1, 19456, 2560, "bfloat16", gated=True)
    functions["gated"] = stream_gated_linear("gated", gated, "bfloat16", activation="silu", norm_eps=EPSILON)
    report = report_of(functions, ARCH)
    assert report.kernels == len(functions)
    assert not report.spills
    assert report.source.count("dspark_await_previous();") == len(functions)
    # Two forms of a tile, two halves each.
    assert report.source.count("ld.global.nc.L1::no_allocate.L2::256B.v4.u32") == 4


def test_the_order_of_sums_does_not_depend_on_the_rows() -> None:
    for features, depth, gated in ((960, 576, False), (576, 1536, False), (19456, 2560, True), (151936, 4096, False)):
        for form in FORMS:
            one, *others = (LinearWorkload(rows, features, depth, form, gated) for rows in (1, 8, 16, 32))
            assert {default_stream_schedule(work).warps for work in (one, *others)} == {
                default_stream_schedule(one).warps
            }
            schedules = candidate_schedules(one)
            assert schedules[0] == default_stream_schedule(one)
            assert len(set(schedules)) == len(schedules)
            for cut in schedules:
                assert cut.stripes * cut.ahead * (1 + gated) <= 16  # tiles of a warp under way: 8 registers each
                assert cut.warps <= 32


def test_rows_too_many_to_be_normalized_by_each_block() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        stream_linear("f", LinearWorkload(32, 64, 4096, "float16"), "float16", norm_eps=EPSILON)


SHAPES = [(1, 272, 584, 4, 2), (3, 256, 640, 8, 4), (11, 100, 1152, 3, 2), (32, 64, 2560, 4, 8)]


def test_products_are_right() -> None:
    gpu()
    random = np.random.default_rng()
    functions = {}
    for i, (rows, features, depth, warps, ahead) in enumerate(SHAPES):
        work, cut = LinearWorkload(rows, features, depth, "float16"), StreamSchedule(1 + i % 2, warps, ahead)
        functions[f"f{i}"] = stream_linear(f"f{i}", work, "float16", cut, bias=True, residual=True)
    compiled = compile_for(functions, ARCH)
    for i, (rows, features, depth, _, _) in enumerate(SHAPES):
        x, w = ((random.standard_normal((n, depth)) / depth**0.5).astype(np.float16) for n in (rows, features))
        bias, residual = (random.standard_normal(s).astype(np.float32) for s in ((features,), (rows, features)))
        y = np.full((rows, features), np.nan, np.float32)
        exact = x.astype(float) @ w.T.astype(float) + bias + residual
        (found,) = call(compiled[f"f{i}"], [x, pack_fragments(w), bias, residual, y])
        assert error(found, exact) < 1e-5


def test_quantized_products_are_right() -> None:
    gpu()
    random = np.random.default_rng()
    cases = [(i, form) for i in range(len(SHAPES)) for form in CODES if SHAPES[i][2] % (form[1] or 1) == 0]
    functions = {}
    for at, (i, (stored, group, offsets)) in enumerate(cases):
        work = LinearWorkload(*SHAPES[i][:3], stored)
        functions[f"f{at}"] = stream_linear(f"f{at}", work, "float16", group=group, offsets=offsets)
    compiled = compile_for(functions, ARCH)
    for at, (i, form) in enumerate(cases):
        rows, features, depth = SHAPES[i][:3]
        x = random.standard_normal((rows, depth)).astype(np.float16)
        weight, exact = _quantized(random, features, depth, *form)
        y = np.full((rows, features), np.nan, np.float32)
        (found,) = call(compiled[f"f{at}"], [x, *weight, y])
        assert error(found, x.astype(float) @ exact.T) < 1e-5, (form, i)


def _quantized(
    random: np.random.Generator, features: int, depth: int, stored: str, group: int, offsets: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """A packed weight with its scales and offsets, and what it stands for."""
    low, high = (-8, 8) if stored == "int4" else (-128, 128)
    codes = random.integers(low, high, (features, depth)).astype(np.int8)
    packed = pack_nibbles(codes) if stored == "int4" else pack_bytes(codes)
    if not group:
        scale = random.uniform(0.5, 1, features).astype(np.float32)
        return [packed, scale], codes * scale[:, None].astype(float)
    factors = random.uniform(0.5, 1, (2, features, depth // group)).astype(np.float16)
    scale, offset = (np.repeat(values, group, 1).astype(float) for values in factors)
    shape = group_shape(features, depth, stored, group)
    return [
        packed,
        *(pack_groups(values, shape) for values in factors[: 1 + offsets]),
    ], codes * scale + offsets * offset


@pytest.mark.parametrize("rows", [1, 8, 16])
def test_norms_are_right_early_and_late(rows: int) -> None:
    gpu()
    random = np.random.default_rng()
    features, depth = 288, 2568
    work, gated = (LinearWorkload(rows, features, depth, "float16", part) for part in (False, True))
    functions = {
        "first": late_norm_input("first", rows, depth, "float16"),
        "early": stream_linear("early", work, "float16", residual=True, norm_eps=EPSILON, feeds_norm=True),
        "late": stream_gated_linear(
            "late", gated, "float16", activation="silu", norm_eps=EPSILON, late_norm=True, out_dtype="float32"
        ),
    }
    compiled = compile_for(functions, ARCH)
    x = random.standard_normal((rows, depth)).astype(np.float32) * 3
    w = (random.standard_normal((features, depth)) / depth**0.5).astype(np.float16)
    weight, fed = (random.uniform(0.5, 1.5, n).astype(np.float32) for n in (depth, features))
    normed = x / np.sqrt((x.astype(float) ** 2).mean(1, keepdims=True) + EPSILON) * weight
    product, squares = call(compiled["first"], [x, weight, *_fed(rows, depth)], 2)
    y = np.full((rows, features // 2), np.nan, np.float32)
    (found,) = call(compiled["late"], [product, pack_fragments(w), squares, y])
    gate, up = np.split(normed @ w.T.astype(float), 2, axis=1)
    assert error(found, gate / (1 + np.exp(-gate)) * up) < 2e-3
    residual = random.standard_normal((rows, features)).astype(np.float32)
    arrays = [x, pack_fragments(w), residual, weight, fed, np.full_like(residual, np.nan), *_fed(rows, features)]
    y, product, squares = call(compiled["early"], arrays, 3)
    assert error(y, normed @ w.T.astype(float) + residual) < 1e-3
    assert error(product, y * fed.astype(float)) < 1e-3
    assert error(squares, (y.astype(float) ** 2).reshape(rows, -1, 16).sum(2)) < 1e-6


def _fed(rows: int, depth: int) -> list[np.ndarray]:
    shapes = (((rows, depth), np.float16), ((rows, late_norm_parts(depth)), np.float32))
    return [np.full(shape, np.nan, dtype) for shape, dtype in shapes]


def test_rows_do_not_depend_on_their_number_or_the_cut() -> None:
    gpu()
    random = np.random.default_rng()
    x = random.standard_normal((24, 1536)).astype(np.float16)
    packed = pack_fragments(random.standard_normal((576, 1536)).astype(np.float16))
    # Cuts that share the depth among as many warps sum in the same order, so each number of rows may have its own.
    counts = (1, 5, 8, 16, 24)
    cuts = [StreamSchedule(*cut) for cut in ((1, 8, 4), (2, 8, 4), (1, 8, 8), (1, 8, 2), (2, 8, 2))]
    functions = {
        f"f{rows}": stream_linear(f"f{rows}", LinearWorkload(rows, 576, 1536, "float16"), "float16", cut)
        for rows, cut in zip(counts, cuts, strict=True)
    }
    compiled = compile_for(functions, ARCH)
    results = [
        call(compiled[f"f{rows}"], [x[:rows], packed, np.full((rows, 576), np.nan, np.float32)])[0] for rows in counts
    ]
    for rows, result in zip(counts, results, strict=True):
        np.testing.assert_array_equal(result, results[-1][:rows])
