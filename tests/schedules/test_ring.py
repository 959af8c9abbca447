"""Kernels on rings, against the reference operators."""

import numpy as np
import pytest
import torch

from dspark_compiler.graph import draft_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.ring import read_ring, write_ring
from dspark_compiler.schedules.slot_rows import RowShape
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

dspark = torch.ops.dspark


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def written(shape: RowShape, length: np.ndarray, isa: VectorIsa = WIDEST, **control: np.ndarray) -> np.ndarray:
    """A ring of random numbers after the kernel's write, which must be the operator's."""
    rows = normal(shape.rows, shape.heads, shape.width, shape.dim, seed=1)
    before = normal(shape.batch, shape.heads, shape.places, shape.dim, seed=2)
    ring, expected = before.copy(), torch.from_numpy(before.copy())
    build(write_ring("write", shape, isa, **dict.fromkeys(control, True)), isa)(rows, ring, length, *control.values())
    numbers = {name: torch.from_numpy(value) for name, value in control.items()}
    dspark.write_ring(torch.from_numpy(rows), expected, torch.from_numpy(length), **numbers)
    np.testing.assert_array_equal(ring, expected.numpy())
    return (ring != before).any(-1)[:, 0]


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("dim", [1, 12, 32])
def test_rows_go_to_the_places_of_their_positions(isa: VectorIsa, dim: int) -> None:
    changed = written(RowShape(2, 3, 7, 2, 4, dim), int32(5, 70), isa)
    assert [list(np.flatnonzero(row)) for row in changed] == [[0, 1, 5, 6], [0, 1, 2, 3]]


def test_only_real_rows_of_the_sequences_named_are_written() -> None:
    changed = written(RowShape(3, 2, 7, 2, 4, 8), int32(5, 0), sequence=int32(2, 0), count=int32(3, 0))
    assert [list(np.flatnonzero(row)) for row in changed] == [[], [], [0, 5, 6]]


def test_of_more_rows_than_places_the_last_stay() -> None:
    assert written(RowShape(1, 2, 3, 1, 8, 8), int32(4)).all()
    assert written(RowShape(1, 2, 3, 1, 8, 8), int32(4), count=int32(5)).all()


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("sequence", [None, (2, 0, 2)])
def test_the_last_confirmed_row_is_read(isa: VectorIsa, sequence: tuple[int, ...] | None) -> None:
    ring, length, out = normal(3, 2, 5, 12), int32(0, 3, 16), np.full((3, 2, 1, 12), 7, np.float32)
    optional = [] if sequence is None else [int32(*sequence)]
    kernel = read_ring("read", RowShape(3, 2, 5, 3, 1, 12), isa, sequence=sequence is not None)
    build(kernel, isa)(ring, length, *optional, out)
    expected = dspark.read_ring(*(torch.from_numpy(a) for a in (ring, length, *optional)))
    np.testing.assert_array_equal(out, expected.numpy())
    assert not out[0].any()
    assert out[1:].all()
