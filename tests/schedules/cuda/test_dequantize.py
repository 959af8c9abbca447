"""Codes become the tiles of the weight they stand for, to the bit."""

import ml_dtypes
import numpy as np
import pytest
import torch

from dspark_compiler.schedules.cuda.dequantize import dequantize_fragments
from dspark_compiler.schedules.cuda.fragments import fragment_shape, pack_fragments
from dspark_compiler.schedules.cuda.quantized_fragments import pack_bytes, pack_groups, pack_nibbles
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from tests.schedules.cuda.gpu import call, compile_for, gpu, report_of

ARCH = "sm_90a"
STORED = ("int8", "int4", "float8_e4m3fn")
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def test_a_thread_stores_16_bytes_at_a_time_and_no_register_leaves() -> None:
    functions = {stored: dequantize_fragments(stored, WeightForm(72, 256, stored, "bfloat16")) for stored in STORED}
    report = report_of(functions, ARCH)
    assert report.kernels == len(functions)
    assert not report.spills


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stored", STORED)
def test_tiles_are_those_of_the_weight(stored: str, dtype: str) -> None:
    gpu()
    features, depth, kind = 40, 256, TYPES[dtype]
    torch.manual_seed(0)
    if stored == "float8_e4m3fn":
        codes = torch.randn(features, depth).to(torch.float8_e4m3fn)
    else:
        low, high = (-8, 8) if stored == "int4" else (-127, 128)
        codes = torch.randint(low, high, (features, depth), dtype=torch.int8)
    if stored == "int4":
        scales = (torch.rand(features, depth // 128) + 0.5).to(kind)
        weight = codes.float() * scales.float().repeat_interleave(128, 1)
        arrays = [pack_nibbles(codes.numpy()), pack_groups(scales.view(torch.int16).numpy())]
    else:
        scales = torch.rand(features) + 0.5
        weight = codes.float() * scales[:, None]
        arrays = [pack_bytes(codes.view(torch.uint8).numpy()), scales.numpy()]
    expected = pack_fragments(weight.to(kind).view(torch.int16).numpy())
    functions = {"main": dequantize_fragments("main", WeightForm(features, depth, stored, dtype))}
    numpy_dtype = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    made = np.full(fragment_shape(features, depth), -1, np.int16).view(numpy_dtype)
    (found,) = call(compile_for(functions, ARCH)["main"], [*arrays, made])
    np.testing.assert_array_equal(found.view(np.int16), expected)
