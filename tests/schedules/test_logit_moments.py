"""Moments of the logits, against the reference operator."""

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.cache_storage import E4M3FN, INT8, Storage
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.logit_moments import logit_moments
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.schedules.kernels import MACHINES, WIDEST, build, normal
from tests.schedules.stored import kernel_array, scales, stored
from tests.schedules.test_attention import panels

NARROWEST = next(iter(MACHINES))
SEQUENCE = np.array([1], np.int32)


@pytest.mark.parametrize("isa", [NARROWEST, WIDEST])
@pytest.mark.parametrize(
    ("heads", "groups", "slots", "dim", "queries", "length"),
    [
        (4, 2, 37, 16, 8, 100),
        (6, 2, 13, 6, 7, 3),
        (2, 2, 1, 8, 1, 1),
        (3, 1, 300, 64, 64, 5000),
        (2, 1, 64, 32, 70, 65),
    ],
)
def test_is_the_reference(
    isa: VectorIsa, heads: int, groups: int, slots: int, dim: int, queries: int, length: int
) -> None:
    # An offset makes the mean large beside the deviation: sums of squares would lose it.
    q = normal(1, heads, queries, dim) * np.float32(0.05) + np.float32(3)
    keys = normal(2, groups, slots, dim, seed=1) + np.float32(2)
    number = np.array([length], np.int32)
    tensors = [torch.from_numpy(array) for array in (q, keys, SEQUENCE, number)]
    expected = torch.ops.dspark.logit_moments(tensors[0].double(), tensors[1].double(), None, *tensors[2:], 0.125)
    function = logit_moments(
        "moments", CacheShape(2, groups, slots, dim, dim), 0.125, isa, heads=heads, queries=queries
    )
    out = np.full((2, heads, slots), np.nan, np.float32)
    build(function, isa)(q, panels(keys, isa), SEQUENCE, number, out)
    np.testing.assert_allclose(out[0], expected[0].numpy(), rtol=1e-5)
    np.testing.assert_allclose(out[1], expected[1].numpy(), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("isa", [NARROWEST, WIDEST])
@pytest.mark.parametrize("storage", [INT8, E4M3FN], ids=lambda s: type(s).__name__)
def test_quantized(isa: VectorIsa, storage: Storage) -> None:
    q, number = normal(1, 4, 9, 16), np.array([50], np.int32)
    keys, scale = stored(normal(2, 2, 37, 16, seed=1), storage)
    tensors = [torch.from_numpy(array) for array in (SEQUENCE, number)]
    expected = torch.ops.dspark.logit_moments(torch.from_numpy(q), keys, scale, *tensors, 0.25).numpy()
    function = logit_moments("moments", CacheShape(2, 2, 37, 16, 16, storage), 0.25, isa, heads=4, queries=9)
    out = np.full((2, 4, 37), np.nan, np.float32)
    build(function, isa)(q, panels(kernel_array(keys), isa), *scales(scale), SEQUENCE, number, out)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
