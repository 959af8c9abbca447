"""Products of few rows by matrices: what they compute, and that a row's bits do not depend on the rows beside it."""

from dataclasses import replace

import numpy as np
import pytest
import tvm

from dspark_compiler.backends.vulkan.backend import VulkanBackend
from dspark_compiler.backends.vulkan.pipeline import register_pipeline
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.eighths import EIGHTHS, UNIT
from dspark_compiler.schedules.simt.row_linears import RowLinears
from dspark_compiler.schedules.simt.stream_linear import stream_args
from dspark_compiler.schedules.simt.stream_output import Options
from dspark_compiler.schedules.simt.weights import pack_tiles
from dspark_compiler.schedules.tir import Arg, kernel
from dspark_compiler.schedules.vulkan.matrices import FEW
from dspark_compiler.schedules.vulkan.matrix_cut import MatrixCut
from dspark_compiler.schedules.vulkan.matrix_stream import emit_matrix_stream
from dspark_compiler.schedules.vulkan.matrix_weights import steps_of_a_group
from tests.schedules.vulkan.emulated import Emulated
from tests.vulkan.device import need_vulkan

_CASES = {
    "a norm, gated": (64, 128, Options(norm_eps=1e-6, activation="silu")),
    "a residual and a bias, a depth that ends within a step": (48, 2256, Options(residual=True, bias=True)),
    "one row in three of a residual": (32, 128, Options(residual=True, residual_row=2, residual_step=3)),
    "more steps than are held": (16, 8192, Options()),
    "x in eighths, a depth that ends within a step": (32, 144, Options(residual=True, reads_eighths=True)),
    "y in eighths, gated": (96, 128, Options(norm_eps=1e-6, activation="silu", writes_eighths=True)),
}


# Weights, their features, depth, sixteens of features a work group, rows of x.
_CODES = {
    "a byte, gated, more steps than are held, a depth that ends within an access": ("int8", 64, 1100, 2, (1,)),
    "four bits in groups": ("int4-g128", 16, 256, 1, (2, 1)),
    "four bits in small groups": ("int4-g32", 16, 96, 1, (1,)),
}

_ROWS = 19  # two eights side by side, and the rest
_BLOCKS = {"y in eighths, gated": 3}  # of several rows' work groups, elsewhere as of few features


def test_work_groups_of_a_wide_product_leave_room_for_those_beside_it() -> None:
    of_rows = [MatrixCut.of(_workload(rows, 6144, 1024, Options(activation="silu"))) for rows in (1, 2, 8)]
    assert [cut and (cut.blocks, cut.ahead == cut.steps) for cut in of_rows] == [(1, True), (3, True), (3, True)]
    head = MatrixCut.of(_workload(8, 50000, 1024, Options()))
    assert head is not None
    assert head.blocks == 2
    longer = MatrixCut.of(_workload(8, 6144, 2560, Options(activation="silu")))
    assert longer is not None
    assert longer.blocks == 2, "more of a weight than a subgroup holds"


def _workload(rows: int, features: int, depth: int, options: Options) -> LinearWorkload:
    return LinearWorkload(rows, features, depth, "float16", options.activation is not None)


def _given(args: list[Arg], rng: np.random.Generator) -> dict[str, np.ndarray]:
    given = {}
    for arg in args:
        size = 0.1 if arg.name == "w" else 1.0
        given[arg.name] = size * rng.standard_normal(arg.shape)
    given["x"] *= np.geomspace(1e-3, 3e4, given["x"].shape[0])[:, None] / (UNIT if args[0].dtype == EIGHTHS else 1.0)
    return {arg.name: given[arg.name].astype(arg.dtype) for arg in args}


def _expected(given: dict[str, np.ndarray], options: Options) -> np.ndarray:
    x, w = given["x"].astype(np.float64) * (UNIT if options.reads_eighths else 1.0), given["w"].astype(np.float64)
    if options.norm_eps is not None:
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + options.norm_eps) * given["norm"]
    y = x @ w.T
    if options.activation:
        gate, up = np.split(y, 2, 1)
        y = gate / (1 + np.exp(-gate)) * up
    residual = given["residual"][options.residual_row :: options.residual_step] if options.residual else 0.0
    return y + given.get("bias", 0.0) + residual


@pytest.mark.parametrize("name", _CASES)
def test_products_and_their_bits(name: str) -> None:
    need_vulkan()
    features, depth, options = _CASES[name]
    args = stream_args(_workload(_ROWS, features, depth, options), options)
    given, found = _given(args, np.random.default_rng(3)), {}
    for rows in (_ROWS, 3, 1):
        work = _workload(rows, features, depth, options)
        args, cut = stream_args(work, options), MatrixCut.of(work)
        assert cut is not None
        cut = replace(cut, blocks=_BLOCKS.get(name, cut.blocks)) if rows > 1 else cut
        function = kernel(f"rows_{rows}", args, _body(work, cut, options, args))
        shared = given | {"w": pack_tiles(given["w"])}
        of_rows = {"x": rows, "residual": rows * options.residual_step, "y": rows}
        mine = {n: a[: of_rows.get(n, len(a))] for n, a in shared.items()}
        found[rows] = _run(function, [*mine.values()]) * np.float32(UNIT if options.writes_eighths else 1.0)
    expected = _expected(given, options)
    scale = np.abs(expected).max(1, keepdims=True)
    np.testing.assert_allclose(found[_ROWS] / scale, expected / scale, atol=1e-3)  # x is rounded to float16
    np.testing.assert_array_equal(found[3], found[_ROWS][:3])
    np.testing.assert_array_equal(found[1], found[_ROWS][:1])


@pytest.mark.parametrize("name", _CODES)
def test_products_of_codes_and_their_bits(name: str) -> None:
    need_vulkan()
    stored, features, depth, blocks, of_rows = _CODES[name]
    gated, found = "gated" in name, {}
    options = Options(activation="silu" if gated else None)
    sample = RowLinears().sample(LinearWorkload(of_rows[0], features, depth, stored, gated, "float16"))
    for rows in of_rows:
        work = LinearWorkload(rows, features, depth, stored, gated, "float16")
        args, cut = stream_args(work, options), MatrixCut.of(work)
        assert cut is not None
        cut = replace(cut, blocks=blocks)
        x, *weight = (operand.values for operand in sample.operands)
        given = [x[:rows], *weight, np.zeros(args[-1].shape, np.float32)]
        found[rows] = _run(kernel("codes", args, _body(work, cut, options, args)), given)
    expected = sample.expected
    np.testing.assert_allclose(found[of_rows[0]], expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(found[1], found[of_rows[0]][:1])


def test_scales_of_groups_that_are_no_whole_accesses() -> None:
    found = [steps_of_a_group(group, 4) for group in (32, 64, 96, 128, 192, 256, 384, 512)]
    assert found == [1, 1, 1, 2, 1, 4, 2, 4]


def _run(function: tvm.tirx.PrimFunc, given: list[np.ndarray]) -> np.ndarray:
    """The last argument as the function leaves it."""
    backend, device = VulkanBackend(), tvm.vulkan()
    with backend.target:
        built = tvm.compile(tvm.IRModule({"main": function}), backend.target, tir_pipeline=register_pipeline())
    tensors = [tvm.runtime.tensor(array, device) for array in given]
    built["main"](*tensors)
    found: np.ndarray = tensors[-1].numpy()
    return found


def _body(work: LinearWorkload, cut: MatrixCut, options: Options, args: list[Arg]):
    def body(*buffers: object) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        emit_matrix_stream(work, cut, options, of, Emulated(cut.threads, FEW, keeps=cut.per > 1))

    return body
