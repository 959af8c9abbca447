"""Likelihoods against torch's cross entropy."""

import numpy as np
import pytest
import torch

from dspark_compiler.compare.likelihood import negative_log_likelihood, perplexity


@pytest.mark.parametrize("cuts", [[], [1], [3, 4], [6]])
def test_equals_cross_entropy_however_it_is_cut(cuts: list[int]) -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(11, size=7).tolist()
    logits = rng.normal(0, 5, (7, 11)).astype(np.float32)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:-1]).double(), torch.tensor(tokens[1:]), reduction="sum"
    )
    found = negative_log_likelihood(tokens, np.split(logits, cuts))
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0], [0, 0]], np.float32)
    assert negative_log_likelihood([0, 1], [logits]) == pytest.approx(1e4)


def test_perplexity_of_even_odds_is_their_number() -> None:
    logits = np.zeros((5, 8), np.float32)
    assert perplexity(negative_log_likelihood([1, 2, 3, 4, 5], [logits]), 4) == pytest.approx(8)
