"""Logits to probabilities: against the reference operator and against the host's."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from dspark_compiler.graph import sampling_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.runtime.sampling import SamplingParams, probabilities
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.token_probs import token_probs
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

Knobs = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p

KNOBS: list[Knobs] = [
    (0.0, 5, 0.5, 0.2),
    (0.7, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.3, 50, 1.0, 0.0),
    (1.0, 10**6, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (2.0, 0, 0.999, 0.0),
    (0.5, 0, 1e-6, 0.0),
    (1.0, 0, 1.0, 0.05),
    (1.0, 0, 1.0, 1.0),
    (0.8, 40, 0.8, 0.1),
    (1.5, 3, 0.5, 0.0),
]


@cache
def compiled(batch: int, rows: int, vocab: int, isa: VectorIsa) -> Callable[..., None]:
    return build(token_probs("probs", batch, rows, vocab, isa), isa)


def distributions(logits: np.ndarray, knobs: list[Knobs], isa: VectorIsa = WIDEST) -> np.ndarray:
    """The kernel's [B,R,V]; the operator must have the same support and values."""
    temperature, top_k, top_p, min_p = zip(*knobs, strict=True)
    arrays = [logits, np.array(temperature, np.float32), np.array(top_k, np.int32)]
    arrays += [np.array(top_p, np.float32), np.array(min_p, np.float32)]
    out = np.full(logits.shape, 7, np.float32)
    compiled(*logits.shape, isa)(*arrays, out)
    expected = torch.ops.dspark.token_probs(*(torch.from_numpy(array) for array in arrays)).numpy()
    np.testing.assert_array_equal(out > 0, expected > 0)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(out.sum(-1, dtype=np.float64), 1, rtol=1e-5)
    return out


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("vocab", [1, 8, 77, 1000])
def test_all_knobs_in_one_batch(isa: VectorIsa, vocab: int) -> None:
    distributions(normal(len(KNOBS), 2, vocab) * 4, KNOBS, isa)


def test_a_large_vocabulary() -> None:
    distributions(normal(4, 1, 49152) * 3, [KNOBS[i] for i in (0, 3, 5, 10)])


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("seed", range(3))
def test_many_equal_logits(isa: VectorIsa, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(-3, 3, (len(KNOBS), 2, 77)).astype(np.float32)
    distributions(logits, KNOBS, isa)


def test_equals_of_the_last_of_the_top_k_stay() -> None:
    logits = np.array([[[1, 3, 2, 2, 0, 2]]], np.float32)
    assert list(np.flatnonzero(distributions(logits, [(1.0, 2, 1.0, 0.0)]))) == [1, 2, 3, 5]


def test_of_equals_at_the_end_of_the_nucleus_the_first_stay() -> None:
    logits = np.zeros((1, 1, 8), np.float32)
    assert list(np.flatnonzero(distributions(logits, [(1.0, 0, 0.5, 0.0)]))) == [0, 1, 2, 3]
    assert list(np.flatnonzero(distributions(logits, [(1.0, 0, 0.51, 0.0)]))) == [0, 1, 2, 3, 4]
    assert list(np.flatnonzero(distributions(logits, [(1.0, 0, 1e-9, 0.0)]))) == [0]


def test_greedy_takes_the_first_of_the_highest() -> None:
    logits = np.array([[[-5, -2, -7, -2, -2]]], np.float32)
    assert list(distributions(logits, [(0.0, 0, 1.0, 0.0)])[0, 0]) == [0, 1, 0, 0, 0]


def test_masked_logits_have_no_probability() -> None:
    logits = np.array([[[-np.inf, 1, -np.inf, 0, -1]]], np.float32)
    for knobs in KNOBS:
        assert not distributions(logits, [knobs])[0, 0, [0, 2]].any()


@pytest.mark.parametrize("knobs", KNOBS)
def test_the_host_agrees(knobs: Knobs) -> None:
    temperature, top_k, top_p, min_p = knobs
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = normal(1, 4, 1000, seed=3) * 3
    out = distributions(logits, [knobs])
    for row, probs in zip(logits[0], out[0], strict=True):
        expected = probabilities(row, params, ())
        np.testing.assert_array_equal(probs > 0, expected > 0)
        np.testing.assert_allclose(probs, expected, rtol=1e-6, atol=0)
