"""Codes become the tiles of the weight they stand for, to the bit."""

import ml_dtypes
import numpy as np
import pytest
import torch

from dspark_compiler.schedules.cuda.dequantize import dequantize_fragments
from dspark_compiler.schedules.cuda.fragments import fragment_shape, pack_fragments
from dspark_compiler.schedules.cuda.quantized_fragments import group_shape, pack_bytes, pack_groups, pack_nibbles
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from tests.schedules.cuda.gpu import call, compile_for, gpu, report_of

ARCH = "sm_90a"
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# What codes are, the columns that share a scale, and whether there are offsets.
FORMS = [("int8", 0, False), ("float8_e4m3fn", 0, False), ("int4", 128, False), ("int4", 32, True), ("int8", 64, True)]


def test_a_thread_stores_16_bytes_at_a_time_and_no_register_leaves() -> None:
    functions = {
        f"f{i}": dequantize_fragments(f"f{i}", WeightForm(72, 256, stored, "bfloat16", group, offsets))
        for i, (stored, group, offsets) in enumerate(FORMS)
    }
    report = report_of(functions, ARCH)
    assert report.kernels == len(functions)
    assert not report.spills


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("stored", "group", "offsets"), FORMS)
def test_tiles_are_those_of_the_weight(stored: str, group: int, offsets: bool, dtype: str) -> None:
    gpu()
    features, depth, kind = 40, 256, TYPES[dtype]
    torch.manual_seed(0)
    if stored == "float8_e4m3fn":
        codes = torch.randn(features, depth).to(torch.float8_e4m3fn)
    else:
        low, high = (-8, 8) if stored == "int4" else (-127, 128)
        codes = torch.randint(low, high, (features, depth), dtype=torch.int8)
    packed = pack_nibbles(codes.numpy()) if stored == "int4" else pack_bytes(codes.view(torch.uint8).numpy())
    if group:
        shape = group_shape(features, depth, stored, group)
        scales, shifts = torch.rand(2, features, depth // group).half().float()
        wide = codes.float() * scales.repeat_interleave(group, 1)
        weight = wide + offsets * shifts.repeat_interleave(group, 1)
        arrays = [packed, *(pack_groups(values.numpy(), shape) for values in (scales, shifts)[: 1 + offsets])]
    else:
        scales = torch.rand(features) + 0.5
        weight = codes.float() * scales[:, None]
        arrays = [packed, scales.numpy()]
    expected = pack_fragments(weight.to(kind).view(torch.int16).numpy())
    functions = {"main": dequantize_fragments("main", WeightForm(features, depth, stored, dtype, group, offsets))}
    numpy_dtype = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    made = np.full(fragment_shape(features, depth), -1, np.int16).view(numpy_dtype)
    (found,) = call(compile_for(functions, ARCH)["main"], [*arrays, made])
    np.testing.assert_array_equal(found.view(np.int16), expected)
