"""Matmuls of many rows for Nvidia GPUs: what is generated, what the compiler makes of it, and what comes out."""

import numpy as np
import pytest

from dspark_compiler.schedules.cuda.fragments import pack_fragments
from dspark_compiler.schedules.cuda.tile_linear import tile_gated_linear, tile_linear
from dspark_compiler.schedules.cuda.tile_ring import ring_bytes
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule, candidate_schedules, default_tile_schedule
from dspark_compiler.schedules.cuda.tile_slabs import slab_bytes
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from tests.schedules.cuda.gpu import call, compile_for, error, gpu, report_of

ARCHES = ("sm_90a", "sm_90")  # with the warpgroup product, and without
WIDEST = TileSchedule(128, 256, 4)


def test_no_register_leaves_and_no_product_waits() -> None:
    # The widest tiles, which have the fewest registers left: their rows go to y one by one, and through slabs.
    residual, gated = (LinearWorkload(2048, 4096 * (1 + wide), 4096, "bfloat16", wide) for wide in (False, True))
    functions = {
        "linear": tile_linear("linear", residual, "bfloat16", WIDEST, arch="sm_90a", bias=True, residual=True),
        "gated": tile_gated_linear("gated", gated, "bfloat16", WIDEST, arch="sm_90a", activation="silu"),
    }
    report = report_of(functions, "sm_90a")
    assert report.kernels == len(functions)
    assert not report.spills
    assert "wgmma" not in report.resources  # C7510: products made to wait for one another
    assert report.source.count("dspark_await_previous();") == len(functions)


def test_no_register_leaves_without_the_warpgroup_product() -> None:
    work = LinearWorkload(256, 256, 64, "bfloat16")
    kernel = tile_linear("linear", work, "bfloat16", TileSchedule(128, 128, 4), arch="sm_90", bias=True, residual=True)
    report = report_of({"linear": kernel}, "sm_90")
    assert (report.kernels, report.spills) == (1, False)


def test_schedules_fit_the_machine() -> None:
    for rows in (33, 64, 128, 512, 2048):
        for features, gated in ((48, False), (576, False), (4096, False), (24576, True)):
            work = LinearWorkload(rows, features, 4096, "bfloat16", gated)
            schedules = candidate_schedules(work, "sm_90a")
            assert schedules[0] == default_tile_schedule(work, "sm_90a")
            assert len(set(schedules)) == len(schedules)
            for cut in schedules:
                assert (cut.rows % 64, cut.features % 16) == (0, 0)
                assert cut.stages >= 3
                assert ring_bytes(cut) + slab_bytes(cut.rows) <= 227 << 10


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        tile_linear("f", LinearWorkload(64, 64, 60, "float16"), "float16", arch="sm_90")
    work = LinearWorkload(64, 48, 64, "float16", gated=True)
    with pytest.raises(ValueError, match="multiple of 32"):
        tile_gated_linear("f", work, "float16", arch="sm_90", activation="silu")


SHAPES = [(40, 48, 64), (33, 50, 72), (70, 33, 40), (300, 272, 1000), (2048, 576, 1536)]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("schedule", [None, TileSchedule(64, 32, 3), TileSchedule(128, 128, 4)], ids=str)
def test_products_are_right(arch: str, schedule: TileSchedule | None) -> None:
    gpu()
    random = np.random.default_rng(0)
    functions = {}
    for i, (rows, features, depth) in enumerate(SHAPES):
        work = LinearWorkload(rows, features, depth, "float16")
        functions[f"f{i}"] = tile_linear(f"f{i}", work, "float16", schedule, arch=arch, bias=True, residual=True)
        gated = LinearWorkload(rows, features * 32, depth, "float16", gated=True)
        stored = ("float32", "float16")[i % 2]
        functions[f"g{i}"] = tile_gated_linear(
            f"g{i}", gated, "float16", schedule, arch=arch, activation="silu", out_dtype=stored
        )
    compiled = compile_for(functions, arch)
    for i, (rows, features, depth) in enumerate(SHAPES):
        x, w, wide = (
            (random.standard_normal((n, depth)) / depth**0.5).astype(np.float16)
            for n in (rows, features, features * 32)
        )
        bias, residual = (random.standard_normal(s).astype(np.float32) for s in ((features,), (rows, features)))
        y = np.full((rows, features), np.nan, np.float32)
        exact = x.astype(float) @ w.T.astype(float) + bias + residual
        (found,) = call(compiled[f"f{i}"], [x, pack_fragments(w), bias, residual, y])
        assert error(found, exact) < 1e-5
        gate, up = np.split(x.astype(float) @ wide.T.astype(float), 2, axis=1)
        stored = ("float32", "float16")[i % 2]
        y = np.full(gate.shape, np.nan, stored)
        exact = gate / (1 + np.exp(-gate)) * up
        (found,) = call(compiled[f"g{i}"], [x, pack_fragments(wide), y])
        assert error(found, exact) < (1e-5 if stored == "float32" else 5e-4)
