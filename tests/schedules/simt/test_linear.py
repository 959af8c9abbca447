"""Linears on Vulkan devices: few rows and many, every type, with all that may be done to their sums."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.layouts import RowLayouts
from dspark_compiler.schedules.simt.row_linears import RowLinears
from dspark_compiler.schedules.simt.row_schedule import FEW_ROWS, RowSchedule, candidate_schedules
from dspark_compiler.schedules.simt.stream_linear import stream_linear
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.simt.tile_linear import tile_linear
from tests.backends.vulkan.shaders import run, shaders_of, validate
from tests.vulkan.device import need_vulkan


@dataclass(frozen=True)
class Case:
    """A linear; ``depth`` need not be a whole number of accesses."""

    rows: int
    features: int
    depth: int
    dtype: str = "float32"
    options: Options = PLAIN
    splits: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.depth}x{self.features}-{self.dtype}"


CASES = [
    Case(1, 48, 256, "float16", splits=2),
    Case(1, 41, 36),
    Case(3, 50, 50, "bfloat16", Options(bias=True, residual=True)),
    Case(3, 24, 64, "float16", Options(residual=True, residual_row=1, residual_step=4), splits=2),
    Case(8, 32, 256, "float16", Options(norm_eps=1e-6), splits=2),
    Case(11, 32, 40, "float32", Options(activation="silu", norm_eps=1e-5)),
    Case(17, 50, 50, "bfloat16", Options(bias=True, residual=True)),
    Case(70, 140, 64, "float16", Options(activation="gelu_tanh")),
    Case(1, 20, 500, "int8", Options(bias=True), splits=2),
    Case(2, 20, 264, "float8_e4m3", Options(norm_eps=1e-6)),
    Case(3, 24, 576, "int4-g64", Options(activation="silu")),
    Case(9, 10, 128, "int4-g8-offsets", Options(residual=True)),
    Case(20, 40, 72, "int4-g24-offsets"),
    Case(17, 24, 136, "float8_e4m3", Options(bias=True)),
]


def operands(case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """A kernel's arguments but its output, and what that has to be."""
    random, options = np.random.default_rng(case.rows), case.options
    features = case.features // 2 if options.activation else case.features
    x = random.standard_normal((case.rows, case.depth)).astype(np.float32)
    weight, stored = weights(random, case)
    arrays, exact = [x, *stored], x.astype(np.float64)
    if options.norm_eps is not None:
        arrays.append(random.standard_normal(case.depth).astype(np.float32))
        exact = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + options.norm_eps) * arrays[-1]
    exact = exact @ weight.T
    if options.activation:
        gate, up = exact[:, :features], exact[:, features:]
        inner = np.sqrt(8 / np.pi) * (gate + 0.044715 * gate**3) if options.activation == "gelu_tanh" else gate
        exact = gate / (1 + np.exp(-np.clip(inner, -500, None))) * up
    if options.bias:
        arrays.append(random.standard_normal(features).astype(np.float32))
        exact = exact + arrays[-1]
    if options.residual:
        arrays.append(random.standard_normal((case.rows * options.residual_step, features)).astype(np.float32))
        exact = exact + arrays[-1][options.residual_row :: options.residual_step]
    return arrays, exact


def weights(random: np.random.Generator, case: Case) -> tuple[np.ndarray, list[np.ndarray]]:
    """A weight, and the tensors it is stored as."""
    size, form = (case.features, case.depth), WeightFormat.parse(case.dtype)
    if form is None:
        weight = random.standard_normal(size).astype(ml_dtypes.bfloat16 if case.dtype == "bfloat16" else case.dtype)
        packed = RowLayouts(case.dtype).pack(weight)
        return weight.astype(np.float64), [packed.view(np.uint16) if case.dtype == "bfloat16" else packed]
    if form.codes == "float8_e4m3":
        codes = (random.standard_normal(size) * 10.0 ** random.integers(-3, 2, size)).astype(ml_dtypes.float8_e4m3fn)
    else:
        codes = random.integers(-(1 << form.bits - 1), 1 << form.bits - 1, size).astype(np.int8)
    layouts = RowLayouts("float16")
    plain = codes.view(np.uint8) if form.codes == "float8_e4m3" else codes
    stored, weight = [layouts.pack_codes(form, plain)], codes.astype(np.float64)
    for offset in range(1 + form.offsets):
        factors = random.standard_normal((case.features, form.groups(case.depth))).astype(np.float16)
        stored.append(layouts.pack_factors(form, factors.astype(np.float32), exact=not offset))
        spread = factors.astype(np.float64)[:, np.arange(case.depth) // form.columns(case.depth)]
        weight = weight + spread if offset else weight * spread
    return weight, stored


def workload(case: Case) -> LinearWorkload:
    """What the kernels are told of a case."""
    form = WeightFormat.parse(case.dtype)
    if form is None:
        return LinearWorkload(case.rows, case.features, case.depth, RowLayouts(case.dtype).weight_dtype(case.dtype))
    scales = RowLayouts("float16").factors(form, case.features, form.groups(case.depth), True)[1]
    return LinearWorkload(case.rows, case.features, case.depth, case.dtype, scale_dtype=scales)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_linear_is_its_product(case: Case) -> None:
    arrays, exact = operands(case)
    work = workload(case)
    if case.rows > FEW_ROWS:
        kernel = tile_linear("main", work, case.options)
    else:
        kernel = stream_linear("main", work, RowSchedule(case.splits), case.options)
    for shader in shaders_of({"main": kernel}):
        validate(shader)
    need_vulkan()
    found = run(kernel, *arrays, np.full(exact.shape, np.nan, np.float32))[-1]
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def test_weights_come_sixteen_bytes_at_a_time() -> None:
    work = LinearWorkload(1, 64, 512, "float16")
    (shader,) = shaders_of({"main": stream_linear("main", work, RowSchedule(1))})
    text = shader.disassembly()
    assert text.count("OpLoad %v4uint") == 8, "all of a thread's accesses along its row, under way together"
    assert "_ptr_PhysicalStorageBuffer_half" not in text


def test_a_row_has_the_same_bits_whatever_comes_with_it() -> None:
    need_vulkan()
    (x, packed), _ = operands(Case(5, 24, 128, "float16"))
    alone, together = (
        run(
            stream_linear("main", LinearWorkload(rows, 24, 128, "float16"), RowSchedule(2)),
            x[:rows],
            packed,
            np.zeros((rows, 24), np.float32),
        )[-1]
        for rows in (1, 5)
    )
    np.testing.assert_array_equal(alone[0], together[0])


def test_how_a_weight_is_cut_does_not_depend_on_the_rows() -> None:
    for features, depth in ((151936, 1024), (1024, 3072), (48, 32)):
        found = [candidate_schedules(LinearWorkload(rows, features, depth, "float16")) for rows in (1, 8, 16)]
        assert found[0] == found[1] == found[2]
    assert candidate_schedules(LinearWorkload(512, 1024, 1024, "float16")) == [RowSchedule(0)]


@pytest.mark.parametrize(("rows", "stored"), [(1, "uint16"), (20, "uint16"), (1, "int8"), (2, "int4-g32-offsets")])
def test_what_tuning_measures_is_right(rows: int, stored: str) -> None:
    need_vulkan()
    linears, work = RowLinears(), LinearWorkload(rows, 40, 64, stored, gated=True)
    sample, (schedule, *_) = linears.sample(work), linears.candidates(work)
    given = [np.resize(operand.values, operand.shape) for operand in sample.operands]
    found = run(linears.kernel(work, schedule), *given, np.zeros(sample.expected.shape, sample.dtype))[-1]
    assert sample.holds(found)
