"""Linears by matrix instructions: what they compute, on Vulkan devices with the instructions emulated."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.rocm.architectures import ARCHITECTURES
from dspark_compiler.schedules.rocm.matrix_instructions import matrix_instruction
from dspark_compiler.schedules.rocm.matrix_linear import matrix_linear
from dspark_compiler.schedules.simt.layouts import RowLayouts
from dspark_compiler.schedules.simt.stream_output import Options
from tests.backends.vulkan.shaders import run
from tests.schedules.rocm.emulated import Emulated
from tests.schedules.simt.test_linear import Case, operands, weights, workload
from tests.vulkan.device import need_vulkan

CASES = [
    ("gfx942", Case(20, 50, 50, "bfloat16", Options(bias=True, residual=True))),
    ("gfx1100", Case(70, 64, 136, "float16")),
    ("gfx1201", Case(20, 100, 64, "bfloat16", Options(activation="silu"))),
]
# Codes, and the type that is multiplied.
CODES = [
    ("gfx942", Case(20, 40, 328, "int8", Options(bias=True)), "bfloat16"),
    ("gfx90a", Case(70, 70, 72, "int4-g24-offsets", Options(residual=True)), "float16"),
    ("gfx1100", Case(20, 100, 136, "float8_e4m3", Options(activation="silu")), "float16"),
    ("gfx1201", Case(20, 24, 576, "int4-g64"), "bfloat16"),
]


@pytest.mark.parametrize(("arch", "case"), CASES, ids=str)
def test_a_linear_is_the_product_of_what_is_rounded(arch: str, case: Case) -> None:
    assert_right(arch, case, case.dtype)


@pytest.mark.parametrize(("arch", "case", "dtype"), CODES, ids=str)
def test_codes_are_multiplied_as_the_other_weights_are(arch: str, case: Case, dtype: str) -> None:
    assert_right(arch, case, dtype)


def assert_right(arch: str, case: Case, dtype: str) -> None:
    """The kernel's result is the product of x and weights as ``dtype`` has them; codes with a scale a row are exact."""
    need_vulkan()
    kept = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays, _ = operands(case)
    weight, count = multiplied(case, kept)
    exact = product(case, arrays[0].astype(kept).astype(np.float64), weight, arrays[1 + count :])
    emulated = Emulated(**dataclasses.asdict(matrix_instruction(ARCHITECTURES[arch])))
    kernel = matrix_linear("main", workload(case), emulated, RowLayouts(dtype).weight_dtype(dtype), case.options)
    found = run(kernel, *arrays, np.full(exact.shape, np.nan, np.float32))[-1]
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def multiplied(case: Case, kept: np.dtype) -> tuple[np.ndarray, int]:
    """The weight of ``operands`` as matrices of ``kept`` have it, and how many tensors it is stored as."""
    random = np.random.default_rng(case.rows)
    random.standard_normal((case.rows, case.depth))  # x, behind which the weight is drawn
    weight, stored = weights(random, case)
    form = WeightFormat.parse(case.dtype)
    if form is None or form.group:  # codes with a scale a row are exact
        weight = weight.astype(np.float32).astype(kept).astype(np.float64)
    return weight, len(stored)


def product(case: Case, x: np.ndarray, weight: np.ndarray, rest: list[np.ndarray]) -> np.ndarray:
    """What a kernel has to make of its arguments."""
    exact = x @ weight.T
    if case.options.activation == "silu":
        gate, up = np.split(exact, 2, axis=1)
        exact = gate / (1 + np.exp(-gate)) * up
    return exact + sum(array.astype(np.float64) for array in rest)


# Of AMD's ISA documents: where row and column of D lie, by lane and number.
_ROWS = {
    "gfx942": lambda lane, number: 4 * (lane // 16) + number,
    "gfx90a": lambda lane, number: 4 * (lane // 16) + number,
    "gfx1100": lambda lane, number: 2 * number + lane // 16,
    "gfx1201": lambda lane, number: 8 * (lane // 16) + number,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lanes_make_all_of_a_product(arch: str) -> None:
    instruction = matrix_instruction(ARCHITECTURES[arch])
    assert instruction.lanes == ARCHITECTURES[arch].wave
    places = {
        (instruction.row(lane, number), lane % 16)
        for lane in range(instruction.lanes)
        for number in range(instruction.made)
    }
    assert len(places) == instruction.lanes * instruction.made == 256
    for lane in range(instruction.lanes):
        for number in range(instruction.made):
            assert instruction.row(lane, number) == _ROWS[arch](lane, number)
