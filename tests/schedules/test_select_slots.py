"""Which slots stay, against the reference operator; kernels are built once and called on many inputs."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.select_slots import select_slots
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

BATCH, GROUPS, FIRST, LAST = 2, 3, 3, 4
NAN, INF = float("nan"), float("inf")
SCORES = [NAN, -NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 1e-42, -1e-42, 3.4e38, -3.4e38, 2.0, 0.5]


@cache
def compiled(slots: int, isa: VectorIsa) -> Callable[..., None]:
    shape = CacheShape(BATCH, GROUPS, slots, 0, 0)
    return build(select_slots("select", shape, FIRST, LAST, isa), isa)


def select(isa: VectorIsa, score: np.ndarray, position: np.ndarray, *control: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel and the operator say for control = (sequence, length, free, need)."""
    numbers = [np.array([value], np.int32) for value in control]
    out = np.full(score.shape, -7, np.int32)
    compiled(score.shape[2], isa)(score, position, *numbers, out)
    tensors = [torch.from_numpy(array) for array in (score, position, *numbers)]
    return out, torch.ops.dspark.select_slots(*tensors, FIRST, LAST).numpy()


def positions(slots: int, length: int, used: int, seed: int = 0) -> np.ndarray:
    """Rising positions of the live slots, the newest tokens among them; anything in the others."""
    rng = np.random.default_rng(seed)
    result = np.full((BATCH, GROUPS, slots), 2**30, np.int32)
    for row in result.reshape(-1, slots):
        row[:used] = np.sort(rng.choice(length, used, replace=False))
    return result


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("slots", [1, 13, 64, 300])
@pytest.mark.parametrize("need", [0, 1, 7, 1000])
def test_full_cache(isa: VectorIsa, slots: int, need: int) -> None:
    out, expected = select(
        isa, normal(1, GROUPS, slots), positions(slots, 3 * slots, slots), 1, 3 * slots, 0, min(need, slots)
    )
    np.testing.assert_array_equal(out, expected)
    assert ((out >= 0).sum(-1) == slots - min(need, slots)).all()


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize(("length", "free", "need"), [(0, 13, 5), (6, 7, 5), (6, 2, 9), (500, 5, 5), (500, 5, 12)])
def test_partly_full_cache(isa: VectorIsa, length: int, free: int, need: int) -> None:
    used = min(length, 13 - free)
    score = normal(1, GROUPS, 13)
    out, expected = select(isa, score, positions(13, max(length, 1), used), 0, length, free, need)
    np.testing.assert_array_equal(out, expected)


def test_of_equal_scores_the_older_go() -> None:
    out, expected = select(WIDEST, np.zeros((1, GROUPS, 64), np.float32), positions(64, 64, 64), 0, 64, 0, 10)
    np.testing.assert_array_equal(out, expected)
    assert list(out[0, 0, :4]) == [0, 1, 2, 13]


def test_protected_tokens_go_when_nothing_else_is_left() -> None:
    out, expected = select(WIDEST, normal(1, GROUPS, 13), positions(13, 13, 13), 0, 13, 0, 8)
    np.testing.assert_array_equal(out, expected)
    assert list(out[0, 0, :5]) == [2, 9, 10, 11, 12]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_scores(data: st.DataObject) -> None:
    slots = 21
    values = data.draw(st.lists(st.sampled_from(SCORES), min_size=GROUPS * slots, max_size=GROUPS * slots))
    score = np.array(values, np.float32).reshape(1, GROUPS, slots)
    length, free, need = (
        data.draw(st.integers(0, 60)),
        data.draw(st.integers(0, slots)),
        data.draw(st.integers(0, slots)),
    )
    position = positions(slots, max(length, 1), min(length, slots - free), data.draw(st.integers(0, 9)))
    isa = data.draw(st.sampled_from(list(MACHINES)))
    np.testing.assert_array_equal(*select(isa, score, position, 1, length, free, need))
