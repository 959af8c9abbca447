"""Products of one row that await it: what plain streams make of it, bit for bit, whatever way x comes."""

import numpy as np
import pytest
import tvm

from dspark_compiler.backends.vulkan.backend import VulkanBackend
from dspark_compiler.backends.vulkan.pipeline import register_pipeline
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.row_schedule import RowSchedule
from dspark_compiler.schedules.simt.stream_linear import emit_stream_linear, stream_args, stream_linear
from dspark_compiler.schedules.simt.stream_output import Options
from dspark_compiler.schedules.tir import kernel
from dspark_compiler.schedules.vulkan.stream_linear import AWAITING
from tests.vulkan.device import need_vulkan

_CASES = {
    "a norm, gated": (LinearWorkload(1, 192, 136, "float16", True), Options(norm_eps=1e-6, activation="silu"), 2),
    "a residual and a bias": (LinearWorkload(1, 72, 264, "uint16"), Options(residual=True, bias=True), 4),
    "a row in three of a residual": (
        LinearWorkload(1, 72, 64, "float16"),
        Options(residual=True, residual_row=1, residual_step=3),
        2,
    ),
    "too long to be kept": (LinearWorkload(1, 16, 9600, "float32"), Options(residual=True), 16),
}


@pytest.mark.parametrize("name", _CASES)
def test_the_bits_of_plain_streams(name: str) -> None:
    need_vulkan()
    work, options, splits = _CASES[name]
    args = stream_args(work, options)

    def awaiting(*buffers: object) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        emit_stream_linear(work, RowSchedule(splits), options, of, AWAITING)

    functions = {
        "plain": stream_linear("plain", work, RowSchedule(splits), options),
        "awaiting": kernel("awaiting", args, awaiting),
    }
    backend, device = VulkanBackend(), tvm.vulkan()
    with backend.target:
        built = tvm.compile(tvm.IRModule(functions), backend.target, tir_pipeline=register_pipeline())
    rng, given = np.random.default_rng(1), []
    for arg in args:
        values = rng.standard_normal(arg.shape)
        stored = (values.astype(np.float32).view(np.uint32) >> 16) if arg.dtype == "uint16" else values
        given.append(stored.astype(arg.dtype))
    found = {}
    for entry in functions:
        tensors = [tvm.runtime.tensor(array, device) for array in given]
        built[entry](*tensors)
        found[entry] = tensors[-1].numpy()
    assert np.isfinite(found["plain"]).all()
    np.testing.assert_array_equal(found["awaiting"], found["plain"])
