"""What lies between a drafter's projections and what reads them, on Nvidia GPUs, against the operators one by one."""

from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.cuda.draft_prologue import block_prologue, ring_prologue
from dspark_compiler.schedules.cuda.qkv_prologue import Prologue
from dspark_compiler.schedules.ring import RingRows
from dspark_compiler.schedules.slot_rows import RowShape
from tests.schedules.cuda.gpu import call, compile_for, gpu, report_of

ARCH = "sm_90a"
EPS = 1e-6
dspark = torch.ops.dspark


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, dtype=np.float32)


def tables(rows: int, width: int, dim: int) -> list[np.ndarray]:
    angles = np.random.default_rng().uniform(0, 6, (rows, 1, width, dim // 2)).astype(np.float32)
    whole = np.concatenate([angles, angles], -1)
    return [np.cos(whole), np.sin(whole)]


def heads(x: np.ndarray, rows: int, count: int, weight: np.ndarray | None, turned: list[np.ndarray]) -> torch.Tensor:
    """Columns of a projection [b S, count D] as heads [b,count,S,D], normed and rotated if they are."""
    split = torch.from_numpy(x).reshape(rows, -1, count, x.shape[-1] // count)
    if weight is not None:
        split = dspark.rms_norm(split, torch.from_numpy(weight), EPS)
    laid: torch.Tensor = split.transpose(1, 2)
    return dspark.rope(laid, *(torch.from_numpy(table) for table in turned)) if turned else laid


def test_kernels_keep_heads_in_registers() -> None:
    functions = {
        "block": block_prologue("block", BlockShape(2, 32, 8, 7, 7, 128, 128, 1032, 8), Prologue(EPS)),
        "ring": ring_prologue("ring", RingRows(RowShape(2, 8, 1032, 2, 8, 128), 128, 5, True, True), Prologue(EPS)),
    }
    report = report_of(functions, ARCH)
    assert report.kernels == len(functions)
    assert not report.spills


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 8), (128, 128), (64, 256)])
def test_blocks(dim: int, value_dim: int, normed: bool) -> None:
    batch, q_heads, kv_heads, width = 2, 6, 3, 5
    gpu()
    work = Prologue(EPS if normed else None, rope=normed)
    shape = BlockShape(batch, q_heads, kv_heads, width, width, dim, value_dim, 20, 4)
    built = compile_for({"kernel": block_prologue("kernel", shape, work)}, ARCH)["kernel"]
    parts = [normal(batch * width, count * size) for count, size in _sizes(q_heads, kv_heads, dim, value_dim)]
    weights, turned = ([normal(dim), normal(dim)], tables(batch, width, dim)) if normed else ([None, None], [])
    outs = [np.zeros((batch, n, width, d), np.float32) for n, d in _sizes(q_heads, kv_heads, dim, value_dim)]
    given = [np.concatenate(parts, 1), *(weight for weight in weights if weight is not None), *turned]
    found = call(built, [*given, *outs], 3)
    expected = [
        heads(parts[0], batch, q_heads, weights[0], turned),
        heads(parts[1], batch, kv_heads, weights[1], turned),
        heads(parts[2], batch, kv_heads, None, []),
    ]
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, right.numpy(), rtol=1e-5, atol=1e-5)


def _sizes(q_heads: int, kv_heads: int, dim: int, value_dim: int) -> list[tuple[int, int]]:
    return [(q_heads, dim), (kv_heads, dim), (kv_heads, value_dim)]


@pytest.mark.parametrize("told", [{}, {"sequence": np.array([1, 0], np.int32), "count": np.array([3, 9], np.int32)}])
@pytest.mark.parametrize("places", [7, 40])
def test_rings(places: int, told: dict[str, np.ndarray]) -> None:
    rows, kv_heads, width, dim, value_dim, layers = 2, 3, 9, 16, 24, 3
    gpu()
    shape = RingRows(RowShape(rows, kv_heads, places, rows, width, dim), value_dim, layers, bool(told), bool(told))
    built = compile_for({"kernel": ring_prologue("kernel", shape, Prologue(EPS))}, ARCH)["kernel"]
    sizes = [(kv_heads, dim), (kv_heads, value_dim)] * layers
    parts = [normal(rows * width, count * size) for count, size in sizes]
    weights, turned = [normal(dim) for _ in range(layers)], tables(rows, width, dim)
    rings = [normal(rows, kv_heads, places, size) for _, size in sizes]
    control = [np.array([5, 30], np.int32), *told.values()]
    found = call(built, [np.concatenate(parts, 1), *weights, *turned, *rings, *control], len(rings) + len(control))
    for number, ring in enumerate(rings):
        normed = weights[number // 2] if number % 2 == 0 else None
        new = heads(parts[number], rows, kv_heads, normed, turned if number % 2 == 0 else [])
        expected = torch.from_numpy(ring.copy())
        given: list[Any] = [torch.from_numpy(array) for array in control] + [None] * (3 - len(control))
        dspark.write_ring(new, expected, *given)
        np.testing.assert_allclose(found[number], expected.numpy(), rtol=1e-5, atol=1e-5)
