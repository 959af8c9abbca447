"""A drafter's launches from its fused projections on, against the operators one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.graph import draft_ops, ops  # noqa: F401 - define torch.ops.dspark
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.ring import RingRows
from dspark_compiler.schedules.simt.awaited import NOTHING
from dspark_compiler.schedules.simt.block_step import block_counters, block_step, is_block_step
from dspark_compiler.schedules.simt.qkv_prologue import Prologue
from dspark_compiler.schedules.simt.ring_prologue import ring_prologue
from dspark_compiler.schedules.slot_rows import RowShape
from tests.backends.vulkan.shaders import compiled, shaders_of, validate
from tests.schedules.kernels import normal
from tests.vulkan.device import need_vulkan

EPS, SCALE = 1e-6, 0.4
dspark = torch.ops.dspark

GROUPED = BlockShape(2, 6, 2, 5, 5, 16, 8, 40, 6)
BLOCKS = {
    "grouped": (GROUPED, Prologue(EPS)),
    "no norms": (GROUPED, Prologue()),
    "neither norms nor positions": (GROUPED, Prologue(rope=False)),
    "a ring in several parts": (replace(GROUPED, batch=1, width=7, fresh=7, head_dim=64, places=520), Prologue(EPS)),
    "one query": (BlockShape(1, 2, 2, 1, 1, 24, 24, 9, 0), Prologue(EPS)),
    "many queries": (BlockShape(1, 8, 1, 9, 9, 32, 32, 300, 10), Prologue()),
}
AWAITS = pytest.mark.parametrize("awaits", [False, True], ids=["behind barriers", "awaiting"])


def factors(work: Prologue, norms: int, rows: int, width: int, dim: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights of norms, then cosines and sines, as far as ``work`` takes them."""
    angles = np.random.default_rng(9).uniform(0, 6, (rows, 1, width, dim)).astype(np.float32)
    weights = [normal(dim, seed=20 + i) for i in range(norms)] if work.eps is not None else []
    return weights, [np.cos(angles), np.sin(angles)] if work.rope else []


def heads(x: np.ndarray, rows: int, count: int, weight: np.ndarray | None, turned: list[np.ndarray]) -> torch.Tensor:
    """Columns of a projection [b S, count D] as heads [b,count,S,D], normed and rotated if they are."""
    split = torch.from_numpy(x).reshape(rows, -1, count, x.shape[-1] // count)
    if weight is not None:
        split = dspark.rms_norm(split, torch.from_numpy(weight), EPS)
    laid: torch.Tensor = split.transpose(1, 2)
    return dspark.rope(laid, *(torch.from_numpy(table) for table in turned)) if turned else laid


@AWAITS
@pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS)
def test_blocks(case: tuple[BlockShape, Prologue], awaits: bool) -> None:
    need_vulkan()
    shape, work = case
    assert is_block_step(shape)
    kernel, workspace = block_step("main", shape, SCALE, work, awaits=awaits)
    for shader in shaders_of({"main": kernel}):
        validate(shader)
    run = compiled(kernel)
    sizes = [(shape.heads, shape.head_dim), (shape.kv_heads, shape.head_dim), (shape.kv_heads, shape.value_dim)]
    parts = [normal(shape.batch * shape.width, n * d, seed=i) for i, (n, d) in enumerate(sizes)]
    weights, turned = factors(work, 2, shape.batch, shape.width, shape.head_dim)
    rings = [normal(shape.batch, shape.kv_heads, shape.places, d, seed=7 + d) for _, d in sizes[1:]]
    q, k, v = (
        heads(part, shape.batch, n, norm, tables)
        for part, (n, _), norm, tables in zip(
            parts, sizes, [*weights, None] if weights else [None] * 3, [turned, turned, []], strict=True
        )
    )
    free = NOTHING if awaits else 0
    for length in (0, 1, shape.places - shape.spare - 1, shape.places + 3, 10 * shape.places + 7):
        lengths = np.array([length, length // 2][: shape.batch], np.int32)
        *_, arrived, out, _ = run(
            np.concatenate(parts, 1),
            *(*weights, *turned, *rings, lengths),
            np.full(block_counters(shape), free, np.uint32),
            np.full((shape.batch, shape.width, shape.heads, shape.value_dim), np.nan, np.float32),
            np.full(workspace, 0xFFFFFFFF, np.uint32),
        )
        told: list[Any] = [torch.from_numpy(array) for array in (*rings, lengths)]
        expected = dspark.block_attention(q, k, v, *told, shape.spare, SCALE)
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=str(length))
        assert (arrived == free).all()


def test_blocks_that_no_work_group_keeps_take_several_launches() -> None:
    assert not is_block_step(replace(GROUPED, width=33, fresh=33))
    assert not is_block_step(replace(GROUPED, fresh=4))
    assert not is_block_step(replace(GROUPED, head_dim=20))
    assert not is_block_step(replace(GROUPED, value_dim=512))


TOLD = {
    "all": {},
    "some tokens of the sequences named": {
        "sequence": np.array([1, 0], np.int32),
        "count": np.array([3, 9], np.int32),
    },
    "none": {"sequence": np.array([0, 1], np.int32), "count": np.array([0, 1], np.int32)},
}


@AWAITS
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
@pytest.mark.parametrize("places", [7, 40])
@pytest.mark.parametrize("work", [Prologue(EPS), Prologue(), Prologue(EPS, rope=False)])
def test_rings(work: Prologue, places: int, told: dict[str, np.ndarray], awaits: bool) -> None:
    need_vulkan()
    rows, kv_heads, width, dim, value_dim, layers = 2, 3, 9, 16, 24, 3
    control = {"length": np.array([0, 30], np.int32), **told}
    shape = RowShape(rows, kv_heads, places, rows, width, dim)
    kernel = ring_prologue("main", RingRows(shape, value_dim, layers, bool(told), bool(told)), work, awaits=awaits)
    for shader in shaders_of({"main": kernel}):
        validate(shader)
    sizes = [dim, value_dim] * layers
    parts = [normal(rows * width, kv_heads * size, seed=i) for i, size in enumerate(sizes)]
    weights, turned = factors(work, layers, rows, width, dim)
    rings = [normal(rows, kv_heads, places, size, seed=30 + i) for i, size in enumerate(sizes)]
    found = compiled(kernel)(np.concatenate(parts, 1), *weights, *turned, *rings, *control.values())
    for number, ring in enumerate(rings):
        is_key = number % 2 == 0
        norm = weights[number // 2] if weights and is_key else None
        expected, given = torch.from_numpy(ring.copy()), {n: torch.from_numpy(a) for n, a in control.items()}
        dspark.write_ring(heads(parts[number], rows, kv_heads, norm, turned if is_key else []), expected, **given)
        left = found[len(found) - len(control) - len(rings) + number]
        np.testing.assert_allclose(left, expected.numpy(), rtol=1e-5, atol=1e-5)
