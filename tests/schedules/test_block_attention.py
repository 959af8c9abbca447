"""Attention of a draft block, against the reference operator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dspark_compiler.graph import draft_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.block_attention import BlockShape, block_attention
from dspark_compiler.schedules.isa import VectorIsa
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

GROUPED = BlockShape(2, 6, 2, 7, 7, 16, 16, 150, 8)
SHAPES = {
    "grouped": GROUPED,
    "every head its own keys": BlockShape(2, 3, 3, 4, 4, 8, 8, 20, 5),
    "one query, several new keys": replace(GROUPED, width=1, fresh=5),
    "odd sizes": BlockShape(1, 4, 1, 5, 3, 7, 13, 11, 2),
    "many rows": BlockShape(1, 12, 1, 7, 7, 8, 8, 20, 8),
    "nothing spare": BlockShape(1, 2, 1, 3, 3, 8, 8, 9, 0),
}


def attend(shape: BlockShape, length: list[int], isa: VectorIsa, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel and the operator say."""
    queries = (shape.batch, shape.heads, shape.width, shape.head_dim)
    keys = (shape.batch, shape.kv_heads, shape.fresh)
    ring = (shape.batch, shape.kv_heads, shape.places)
    arrays = [
        normal(*queries, seed=1) * np.float32(factor),
        normal(*keys, shape.head_dim, seed=2),
        normal(*keys, shape.value_dim, seed=3),
        normal(*ring, shape.head_dim, seed=4),
        normal(*ring, shape.value_dim, seed=5),
        np.array(length, np.int32),
    ]
    out = np.full((shape.batch, shape.width, shape.heads, shape.value_dim), 7, np.float32)
    build(block_attention("attend", shape, 0.4, isa), isa)(*arrays, out)
    tensors = [torch.from_numpy(array) for array in arrays]
    return out, torch.ops.dspark.block_attention(*tensors, shape.spare, 0.4).numpy()


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("length", [0, 1, 9, 149, 1000])
def test_any_length(isa: VectorIsa, shape: BlockShape, length: int) -> None:
    out, expected = attend(shape, [length, max(0, length - 6)][: shape.batch], isa)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [127, 128, 129, 140, 271, 420])
def test_ends_of_blocks(length: int) -> None:
    out, expected = attend(replace(GROUPED, batch=1, places=400), [length], WIDEST)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    out, expected = attend(GROUPED, [300, 20], WIDEST, factor=100)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_places_for_unconfirmed_tokens_are_not_seen() -> None:
    short, _ = attend(replace(GROUPED, spare=8), [400, 400], WIDEST)
    full, _ = attend(replace(GROUPED, spare=0), [400, 400], WIDEST)
    assert np.abs(short - full).max() > 1e-3
