"""One sequence's part of a state, read and replaced."""

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules import slot_reads
from dspark_compiler.schedules.cache_storage import Storage
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.schedules.kernels import MACHINES, build, normal
from tests.schedules.stored import STORAGES, kernel_array, scales, stored
from tests.schedules.test_attention import panels

dspark = torch.ops.dspark
ONE = np.array([1], np.int32)
STATES = [(3,), (3, 17), (2, 3, 16), (2, 3, 5, 24)]


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize(("shape", "dtype"), list(zip(STATES, ["float32", "int32"] * 2, strict=True)), ids=str)
def test_read_state(isa: VectorIsa, shape: tuple[int, ...], dtype: str) -> None:
    state = (normal(*shape) * 100).astype(dtype)
    out = np.zeros((1, *shape[1:]), dtype)
    build(slot_reads.read_state("read", shape, dtype, isa), isa)(state, ONE, out)
    np.testing.assert_array_equal(out, dspark.read_state(torch.from_numpy(state), torch.from_numpy(ONE)).numpy())


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("shape", STATES, ids=str)
def test_write_state(isa: VectorIsa, shape: tuple[int, ...]) -> None:
    state, value = normal(*shape), normal(1, *shape[1:], seed=1)
    expected = torch.from_numpy(state.copy())
    dspark.write_state(expected, torch.from_numpy(value), torch.from_numpy(ONE))
    build(slot_reads.write_state("write", shape, "float32", isa), isa)(state, value, ONE)
    np.testing.assert_array_equal(state, expected.numpy())


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize(("slots", "dim"), [(13, 6), (96, 64)])
@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: type(s).__name__)
def test_read_keys_and_values(isa: VectorIsa, slots: int, dim: int, storage: Storage) -> None:
    shape = CacheShape(2, 3, slots, dim, dim, storage)
    rows, scale = stored(normal(2, 3, slots, dim), storage)
    expected = dspark.read_keys(rows, scale, torch.from_numpy(ONE)).numpy()
    array, out = kernel_array(rows), np.zeros((1, 3, slots, dim), np.float32)
    build(slot_reads.read_keys("read", shape, isa), isa)(panels(array, isa), *scales(scale), ONE, out)
    np.testing.assert_array_equal(out, expected)
    out[...] = 0
    build(slot_reads.read_values("read", shape, isa), isa)(array, *scales(scale), ONE, out)
    np.testing.assert_array_equal(out, expected)
