"""Stored types against torch: every code and many rows, bit for bit."""

import numpy as np
import pytest
import torch
from tvm.tirx.script.builder import ir as T

from dspark_compiler.graph.reference import quantized
from dspark_compiler.schedules.cache_storage import E4M3FN, INT8, Storage, quantize
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, kernel, vector
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

TYPES = {INT8: torch.int8, E4M3FN: torch.float8_e4m3fn}
IDS = {INT8: "int8", E4M3FN: "e4m3"}


def _stored(rows: np.ndarray, storage: Storage, isa: VectorIsa) -> tuple[np.ndarray, np.ndarray]:
    count, size = rows.shape

    def body(source, target, scales):
        with T.serial(0, count) as row:
            stored, scale = quantize(storage, source, (row,), size, isa.lanes)
            with T.serial(0, size) as d:
                T.buffer_store(target, stored[d], [row, d])
            T.buffer_store(scales, scale, [row])

    args = [Arg("source", rows.shape), Arg("target", rows.shape, storage.dtype), Arg("scales", (count,))]
    target, scales = np.zeros(rows.shape, storage.dtype), np.zeros(count, np.float32)
    build(kernel("quantize", args, body), isa)(rows, target, scales)
    return target, scales


@pytest.mark.parametrize("isa", MACHINES, ids=lambda isa: f"lanes{isa.lanes}")
@pytest.mark.parametrize("storage", TYPES, ids=IDS.get)
def test_rows_are_quantized_as_the_reference_does(storage: Storage, isa: VectorIsa) -> None:
    rows = normal(64, 48) * np.float32(10) ** np.arange(-32, 32, dtype=np.float32)[:, None]
    rows[3] = 0
    rows[4, 5:] = 0
    rows[5] = storage.largest  # scale 1: ties between two codes follow
    rows[5, 1:] = np.arange(47) + 0.5
    rows[6] = rows[5] / np.float32(64)
    rows[6, 0] = storage.largest
    stored, scales = quantized(torch.from_numpy(rows), TYPES[storage])
    found, found_scales = _stored(rows, storage, isa)
    np.testing.assert_array_equal(found_scales, scales.numpy())
    expected = stored.view(torch.int8 if storage is INT8 else torch.uint8).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("storage", TYPES, ids=IDS.get)
def test_every_code_is_read_as_torch_reads_it(storage: Storage) -> None:
    codes = np.arange(256, dtype=np.uint8)

    def body(source, target):
        with T.serial(0, 16) as chunk, vector(16) as lane:
            T.buffer_store(target, storage.load(source[chunk * 16 + lane]), [chunk * 16 + lane])

    args = [Arg("source", (256,), storage.dtype), Arg("target", (256,))]
    found = np.zeros(256, np.float32)
    build(kernel("load", args, body), WIDEST)(codes.view(storage.dtype), found)
    expected = torch.from_numpy(codes).view(TYPES[storage]).float().numpy()
    numbers = np.isfinite(expected)  # 0x7F and 0xFF are no numbers, and never stored
    assert numbers.sum() >= 254
    np.testing.assert_array_equal(found[numbers], expected[numbers])
