"""Linears by cooperative matrices: what they compute, by the matrices' definition and on devices that have them."""

import numpy as np
import pytest
import tvm

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.stream_output import Options
from dspark_compiler.schedules.tir import kernel
from dspark_compiler.schedules.vulkan.matrices import SIDE
from dspark_compiler.schedules.vulkan.matrix_linear import MatrixTile, emit_matrix_linear
from dspark_compiler.schedules.vulkan.rounded_rows import emit_rounded_rows
from dspark_compiler.schedules.vulkan.tile_linear import best_tile, tile_linear, tile_linear_args
from tests.backends.vulkan.shaders import run, shaders_of
from tests.schedules.rocm.test_matrix_linear import multiplied, product
from tests.schedules.simt.test_linear import Case, operands, workload
from tests.schedules.vulkan.emulated import Emulated
from tests.vulkan.device import function, need_vulkan

# Of these lavapipe's compiler makes code within seconds; of those with one matrix down it does not.
WIDE, TALL, DEEP = MatrixTile(64, 64, 2, 2), MatrixTile(64, 32, 2, 1), MatrixTile(64, 64, 2, 2, ahead=2)
CASES = [
    (WIDE, Case(20, 50, 50, "bfloat16", Options(bias=True, residual=True))),
    (TALL, Case(70, 64, 136, "float16")),
    (WIDE, Case(20, 100, 64, "bfloat16", Options(activation="silu"))),
    (WIDE, Case(20, 40, 328, "int8", Options(bias=True))),
    (TALL, Case(66, 70, 72, "int4-g24-offsets", Options(residual=True))),
    (WIDE, Case(20, 100, 136, "float8_e4m3", Options(activation="silu"))),
    (DEEP, Case(20, 24, 320, "int4-g64")),
    (DEEP, Case(70, 60, 100, "bfloat16", Options(activation="silu"))),
]
# Whole tiles, and edges in all directions.
ON_DEVICES = [
    *(case for _, case in CASES),
    Case(512, 4096, 1024, "bfloat16"),
    Case(500, 2000, 1000, "float16", Options(bias=True, residual=True)),
    Case(300, 4096, 512, "bfloat16", Options(activation="silu")),
    Case(130, 1024, 1024, "int4-g128"),
]


@pytest.mark.parametrize(("tile", "case"), CASES, ids=str)
def test_a_linear_is_the_product_of_what_is_rounded(tile: MatrixTile, case: Case) -> None:
    need_vulkan()
    args, work = tile_linear_args(workload(case), case.options), workload(case)

    def body(*buffers: object) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        emit_rounded_rows(of["x"], of["rounded"], of["row_scale"])
        emit_matrix_linear(work, tile, case.options, of, Emulated(tile.threads))

    assert_right(case, kernel("main", args, body), 1e-5)


@pytest.mark.parametrize("case", ON_DEVICES, ids=str)
def test_devices_multiply_matrices(case: Case) -> None:
    need_vulkan()
    work = workload(case)
    if not function("has_matrices")(SIDE, best_tile(work).shared_bytes):
        pytest.skip("needs a Vulkan device with cooperative matrices of 16 x 16 x 16 float16")
    assert_right(case, tile_linear("main", work, case.options), 1e-4)  # how their sums are rounded is not said


def assert_right(case: Case, function: tvm.tirx.PrimFunc, tolerance: float) -> None:
    """It makes the product of x and weights as float16 has them; rows of x first divided by a power of two.

    ``tolerance`` is of a row's greatest number.
    """
    arrays, _ = operands(case)
    weight, count = multiplied(case, np.dtype(np.float16))
    arrays[0] = arrays[0] * 10.0 ** np.arange(-7, case.rows - 7).clip(-7, 7)[:, None]
    arrays[0] = arrays[0].astype(np.float32)
    exact = product(case, rounded(arrays[0])[0], weight, arrays[1 + count :])
    own = (np.zeros(arg.shape, arg.dtype) for arg in tile_linear_args(workload(case), case.options)[-2:])
    found = run(function, *arrays, np.full(exact.shape, np.nan, np.float32), *own)[-3]
    largest = np.abs(exact).max(axis=1, keepdims=True)
    assert (np.abs(found - exact) < tolerance * largest).all()


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as float16 has them when their greatest number is from 2^14 on and below 2^15, and what divides them."""
    greatest = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True)
    _, exponent = np.frexp(np.where(greatest == 0, 2.0**-112, greatest))
    scale = np.ldexp(1.0, np.maximum(exponent, -111) - 15)
    return (x / scale).astype(np.float16).astype(np.float64) * scale, scale[:, 0]


def test_rows_are_rounded_within_their_own_range() -> None:
    need_vulkan()
    x = np.random.default_rng(0).standard_normal((6, 300)).astype(np.float32)
    x *= np.array([1, 1e30, 1e-20, 0, 1e-38, 1e4], np.float32)[:, None]
    x[5, 7] = -3e38

    def body(*buffers: object) -> None:
        emit_rounded_rows(*buffers)

    args = tile_linear_args(LinearWorkload(6, 8, 300, "float16"), Options())
    function = kernel("main", [args[0], *args[-2:]], body)
    *_, found, scale = run(function, x, np.ones((6, 320), np.float16), np.zeros(6, np.float32))
    wanted, divisor = rounded(x)
    np.testing.assert_array_equal(scale, divisor)
    found_numbers = found[:, :300] * scale[:, None].astype(np.float64)
    normal = np.abs(x) >= np.finfo(np.float32).tiny  # what is smaller a device may take for zero
    np.testing.assert_array_equal(np.where(normal, found_numbers, 0), np.where(normal, wanted, 0))
    assert ((found_numbers == wanted) | (found_numbers == 0))[~normal].all()
    assert np.isfinite(found).all()
    assert not found[:, 300:].any()


def test_an_infinite_number_stays_one() -> None:
    need_vulkan()
    x = np.ones((1, 64), np.float32)
    x[0, 3] = np.inf
    args = tile_linear_args(LinearWorkload(1, 8, 64, "float16"), Options())
    function = kernel("main", [args[0], *args[-2:]], lambda *buffers: emit_rounded_rows(*buffers))
    found = run(function, x, np.zeros((1, 64), np.float16), np.zeros(1, np.float32))[1]
    assert np.isinf(found[0, 3])


@pytest.mark.parametrize("stored", ["bfloat16", "int4-g24-offsets"])
def test_a_device_without_matrices_takes_the_other_way(stored: str) -> None:
    """Which is the kernel that other devices share, bit for bit."""
    from dspark_compiler.schedules.simt.tile_linear import tile_linear as plain

    need_vulkan()
    case = Case(20, 40, 72, stored, Options(residual=True))
    work = workload(case)
    if function("has_matrices")(SIDE, best_tile(work).shared_bytes):
        pytest.skip("this device has cooperative matrices")
    arrays, exact = operands(case)
    y = np.zeros(exact.shape, np.float32)
    own = (np.zeros(arg.shape, arg.dtype) for arg in tile_linear_args(work, case.options)[-2:])
    both = run(tile_linear("main", work, case.options), *arrays, y, *own)[-3]
    np.testing.assert_array_equal(both, run(plain("main", work, case.options), *arrays, y)[-1])


def test_tiles_are_large_where_there_are_many() -> None:
    assert best_tile(LinearWorkload(512, 4096, 1024, "uint16")).features == 128
    assert best_tile(LinearWorkload(512, 1024, 1024, "uint16")).rows == 64
    assert best_tile(LinearWorkload(32, 4096, 1024, "uint16")).rows == 32
    for rows, features in ((512, 6144), (512, 1024), (20, 128)):
        tile = best_tile(LinearWorkload(rows, features, 1024, "uint16"))
        assert tile.shared_bytes <= 48 * 1024
        assert tile.threads <= 256


def test_shared_memory_is_what_the_host_asks_for() -> None:
    case = Case(70, 64, 64, "float16")
    work = workload(case)
    shaders = shaders_of({"main": tile_linear("main", work)})
    (matrix,) = [shader for shader in shaders if "cooperative_matrix" in shader.entry["features"]]
    assert matrix.entry["shared_bytes"] == best_tile(work).shared_bytes
