"""Slots move up as the reference operator moves them."""

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.cache_storage import E4M3FN, INT8, Storage
from dspark_compiler.schedules.compact_slots import compact_slots
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.schedules.kernels import MACHINES, build, normal
from tests.schedules.stored import kernel_array, stored
from tests.schedules.test_attention import panels

BATCH, GROUPS = 2, 3
SEQUENCE = np.array([1], np.int32)


def sources(slots: int, kept: int) -> np.ndarray:
    """Which of ``slots`` slots stay, a different choice a head."""
    result = np.full((1, GROUPS, slots), -1, np.int32)
    rng = np.random.default_rng(slots + kept)
    for row in result[0]:
        row[:kept] = np.sort(rng.choice(slots, kept, replace=False))
    return result


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize(
    ("slots", "kept", "scored"), [(13, 9, True), (13, 0, True), (13, 13, False), (64, 63, True), (300, 17, False)]
)
def test_float32(isa: VectorIsa, slots: int, kept: int, scored: bool) -> None:
    dim, value_dim = 6, 24
    keys, values = normal(BATCH, GROUPS, slots, dim), normal(BATCH, GROUPS, slots, value_dim, seed=1)
    position = np.arange(BATCH * GROUPS * slots, dtype=np.int32).reshape(BATCH, GROUPS, slots)
    extra = [normal(BATCH, GROUPS, slots, seed=2)] if scored else []
    source = sources(slots, kept)
    expected = [torch.from_numpy(array.copy()) for array in (keys, values, position, *extra)]
    operands = [torch.from_numpy(array) for array in (source, SEQUENCE)]
    torch.ops.dspark.compact_slots(*expected[:3], *operands, *expected[3:])
    cache = panels(keys, isa)
    shape = CacheShape(BATCH, GROUPS, slots, dim, value_dim)
    build(compact_slots("compact", shape, isa, scored=scored), isa)(cache, values, position, source, SEQUENCE, *extra)
    np.testing.assert_array_equal(cache, panels(expected[0].numpy(), isa))
    for array, tensor in zip((values, position, *extra), expected[1:], strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("storage", [INT8, E4M3FN], ids=lambda s: type(s).__name__)
def test_quantized_rows_move_with_their_scales(isa: VectorIsa, storage: Storage) -> None:
    slots, dim = 40, 8
    (keys, k_scale), (values, v_scale) = (stored(normal(BATCH, GROUPS, slots, dim, seed=i), storage) for i in range(2))
    position = torch.arange(BATCH * GROUPS * slots, dtype=torch.int32).reshape(BATCH, GROUPS, slots)
    states = [keys, values, position, torch.from_numpy(normal(BATCH, GROUPS, slots, seed=2)), k_scale, v_scale]
    arrays = [kernel_array(state) for state in states]
    source = sources(slots, 23)
    torch.ops.dspark.compact_slots(*states[:3], torch.from_numpy(source), torch.from_numpy(SEQUENCE), *states[3:])
    cache = panels(arrays[0], isa)
    function = compact_slots("compact", CacheShape(BATCH, GROUPS, slots, dim, dim, storage), isa, scored=True)
    build(function, isa)(cache, *arrays[1:3], source, SEQUENCE, *arrays[3:])
    np.testing.assert_array_equal(cache, panels(kernel_array(states[0]), isa))
    for array, state in zip(arrays[1:], states[1:], strict=True):
        np.testing.assert_array_equal(array, kernel_array(state))
