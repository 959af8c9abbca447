"""Queries and scores of confirmed tokens go where the reference operators put them."""

import numpy as np
import pytest
import torch
import tvm

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules import slot_rows
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_rows import RowShape
from tests.schedules.kernels import MACHINES, build, normal

dspark = torch.ops.dspark


def check(
    function: tvm.tirx.PrimFunc, isa: VectorIsa, operator: torch._ops.OpOverloadPacket, *arrays: np.ndarray
) -> None:
    """A kernel that writes its first argument against the operator."""
    expected = [torch.from_numpy(array.copy()) for array in arrays]
    operator(*expected)
    before = arrays[0].copy()
    build(function, isa)(*arrays)
    np.testing.assert_array_equal(arrays[0], expected[0].numpy())
    assert not np.array_equal(arrays[0], before), "the case writes nothing"


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# Wrap-around, more tokens than places, none.
@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize(("places", "width", "dim"), [(5, 3, 16), (4, 9, 10), (64, 8, 64), (1, 1, 3)])
def test_append_queries(isa: VectorIsa, places: int, width: int, dim: int) -> None:
    shape = RowShape(batch=3, heads=2, places=places, rows=2, width=width, dim=dim)
    ring, q = normal(3, 2, places, dim), normal(2, 2, width, dim, seed=1)
    for length, count in (((0, 3), (width, 1)), ((63, 4), (max(width - 1, 1), 0))):
        kernel = slot_rows.append_queries("append", shape, isa)
        check(kernel, isa, dspark.append_queries, ring, q, int32(2, 0), int32(*length), int32(*count))
        q = q + np.float32(1)


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize(("places", "width", "dim"), [(5, 3, 16), (4, 9, 10)])
def test_commit_queries(isa: VectorIsa, places: int, width: int, dim: int) -> None:
    shape = RowShape(batch=3, heads=2, places=places, rows=3, width=width, dim=dim)
    ring, scratch = normal(3, 2, places, dim), normal(3, 2, width, dim, seed=1)
    kernel = slot_rows.commit_queries("commit", shape, isa)
    check(kernel, isa, dspark.commit_queries, ring, scratch, int32(4, 0, 7), int32(width, 0, 2))


@pytest.mark.parametrize("isa", MACHINES)
def test_append_slot_scores(isa: VectorIsa) -> None:
    shape = RowShape(batch=3, heads=2, places=13, rows=3, width=4)
    state, score = normal(3, 2, 13), normal(3, 2, 4, 1, seed=1)
    control = [int32(1, 2, 0), int32(5, 100, 9), int32(4, 3, 0), int32(5, 5, 13 - 9)]
    check(slot_rows.append_slot_scores("append", shape), isa, dspark.append_slot_scores, state, score, *control)


@pytest.mark.parametrize("isa", MACHINES)
def test_commit_slot_scores(isa: VectorIsa) -> None:
    shape = RowShape(batch=3, heads=2, places=13, rows=3, width=4)
    state, scratch = normal(3, 2, 13), normal(3, 2, 4, 1, seed=1)
    control = [int32(5, 100, 9), int32(4, 0, 3), int32(5, 5, 4)]
    check(slot_rows.commit_slot_scores("commit", shape), isa, dspark.commit_slot_scores, state, scratch, *control)


def test_scores_past_the_last_slot_are_dropped() -> None:
    isa = next(iter(MACHINES))
    state, score = normal(1, 2, 8), normal(1, 2, 4, 1, seed=1)
    expected = state.copy()
    expected[:, :, 6:] = score[:, :, :2, 0]
    append = build(slot_rows.append_slot_scores("append", RowShape(1, 2, 8, 1, 4)), isa)
    append(state, score, int32(0), int32(6), int32(4), int32(0))
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("dim", [1, 10, 32])
def test_write_scratch(isa: VectorIsa, dim: int) -> None:
    shape = RowShape(batch=2, heads=3, places=7, rows=2, width=5, dim=dim)
    scratch, rows = normal(2, 3, 7, dim), normal(2, 3, 5, dim, seed=1)
    check(slot_rows.write_scratch("write", shape, isa), isa, dspark.write_scratch, scratch, rows)
