"""What products on a GPU are measured with: arguments as kernels take them, and what they stand for."""

import numpy as np
import pytest

from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.fragments import place
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.linear_schedule import LinearWorkload

LINEARS = FragmentLinears("sm_90a")


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("gated", [False, True])
def test_samples_fit_kernels(form: str, gated: bool) -> None:
    for rows, features, depth in ((1, 4096, 4096), (8, 96, 584)):
        work = LinearWorkload(rows, features, depth, form, gated)
        sample = LINEARS.sample(work)
        params = LINEARS.kernel(work, LINEARS.candidates(work)[-1]).params
        shapes = [tuple(int(extent) for extent in param.shape) for param in params]
        assert [*(operand.shape for operand in sample.operands), sample.expected.shape] == shapes
        assert [*(str(o.values.dtype) for o in sample.operands), sample.dtype] == [str(p.dtype) for p in params]
        for operand in sample.operands:
            assert operand.values.shape[1:] == operand.shape[1:]
            assert len(operand.values) <= operand.shape[0]
        assert sample.holds(sample.expected.astype(sample.dtype))
        assert not sample.holds(np.zeros(sample.expected.shape, np.float32))


def test_a_sample_expects_the_product_of_what_it_holds() -> None:
    work = LinearWorkload(2, 2048, 2048, "bfloat16")
    x, w = LINEARS.sample(work).operands
    period = len(w.values) * 16
    assert period < work.features
    for feature in (0, period - 1, period, work.features - 1):
        stripe, row = divmod(feature % period, 16)
        whole = w.values[stripe].astype(float)  # [K/32, 512]
        weight = np.array([whole[k // 32, place(row, k % 32)] for k in range(work.depth)])
        expected = LINEARS.sample(work).expected[:, feature]
        np.testing.assert_allclose(x.values.astype(float) @ weight, expected, rtol=1e-9)


def test_few_rows_stream_and_many_are_cut_in_tiles() -> None:
    for rows, kind in ((1, StreamSchedule), (32, StreamSchedule), (33, TileSchedule), (512, TileSchedule)):
        assert {type(cut) for cut in LINEARS.candidates(LinearWorkload(rows, 4096, 4096, "bfloat16"))} == {kind}


def test_orders_of_sums() -> None:
    assert LINEARS.order(StreamSchedule(1, 8, 4)) == LINEARS.order(StreamSchedule(2, 8, 2))
    assert LINEARS.order(StreamSchedule(1, 8, 4)) != LINEARS.order(StreamSchedule(1, 16, 4))
    assert LINEARS.order(TileSchedule(64, 64, 4)) == LINEARS.order(TileSchedule(128, 256, 4))
