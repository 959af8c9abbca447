"""Which drafts are verified, and that the choice leaves the target's distribution alone."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.artifact import StepTime, StepTimes
from dspark_compiler.runtime.costs import RoundCosts
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.scheduler import AsyncScheduler, admit, admit_top, capacity, survival
from tests.runtime.law import (
    after,
    chain,
    drafted,
    first_tokens,
    round_law,
    target_law,
    verdicts,
)

survivals = st.lists(
    st.lists(st.floats(0.01, 1), max_size=6).map(lambda values: np.cumprod(np.array(values))), min_size=1, max_size=4
)


def test_admission_follows_the_algorithm() -> None:
    steps = [1.0, 1.0, 0.9, 0.8, 0.4, 0.3]  # at 1, 2, … tokens more than sequences
    first, second = np.array([0.9, 0.8, 0.1]), np.array([0.85, 0.3])
    # 2, 2.9, 3.375 (of 3.75 tokens), 3.64 (4.55), and 1.94 at four drafts: that one drops.
    assert admit([first, second], lambda tokens: steps[tokens - 2]) == [2, 1]
    # The fourth would pay again: nobody looks.
    steps[3:] = [0.1, 0.1, 10]
    assert admit([first, second], lambda tokens: steps[tokens - 2]) == [1, 1]
    assert admit([], lambda tokens: 1.0) == []


@given(survivals, st.lists(st.floats(0.1, 2), min_size=30, max_size=30), st.integers(0, 25))
@settings(max_examples=200, deadline=None)
def test_what_is_admitted_is_the_likeliest(values: list[np.ndarray], rates: list[float], count: int) -> None:
    for lengths in (admit(values, rates.__getitem__), admit_top(values, count)):
        inside = [float(a) for row, n in zip(values, lengths, strict=True) for a in row[:n]]
        outside = [float(a) for row, n in zip(values, lengths, strict=True) for a in row[n:]]
        assert min(inside, default=1) >= max(outside, default=0)
    assert sum(admit_top(values, count)) == min(count, sum(map(len, values)))
    best = capacity(values, rates.__getitem__)
    taken = sorted((float(a) for row in values for a in row), reverse=True)
    every = [(len(values) + sum(taken[:n])) * rates[len(values) + n] for n in range(len(taken) + 1)]
    assert every[best] == pytest.approx(max(every))


def test_the_asynchronous_scheduler_takes_its_capacity_from_two_rounds_before() -> None:
    scheduler = AsyncScheduler()
    sure, unsure = np.full(4, 1.0), np.full(4, 0.01)
    rate = lambda tokens: 1 / (1 + tokens)  # noqa: E731 - pays for a sure draft alone
    assert [scheduler([round_], rate) for round_ in (unsure, sure, sure, unsure, sure)] == [[4], [4], [0], [4], [4]]


def test_confidences_are_calibrated() -> None:
    logits = np.log(np.array([3.0, 1.0, 1 / 3], np.float32))
    np.testing.assert_allclose(survival(logits, ()), [0.75, 0.375, 0.09375])
    np.testing.assert_allclose(survival(logits, (0.5, 1.0, 1.0)), [0.9, 0.45, 0.1125])
    shifts = (0.0, np.log(3), np.log(9))
    np.testing.assert_allclose(survival(logits, (0.5, 1.0, 1.0), shifts), [0.9, 0.675, 0.50625])


# The counterexample of the paper's appendix A: after token 0 the second draft is sure to stay, after token 1 to fall.
TARGET, DRAFTER = torch.tensor([[0.7, 0.3]] * 2), torch.tensor([[0.5, 0.5]] * 2)
RATES = {1: 1.0, 2: 0.5, 3: 0.45}


def second_known(tokens: tuple[int, ...]) -> np.ndarray:
    return np.cumprod([0.8, 1.0 if tokens[1] == 0 else 0.0])


def anticipating(tokens: tuple[int, ...]) -> int:
    """The best of all prefixes, this round's confidences known: it verifies token 0 and never token 1."""
    return capacity([second_known(tokens)], RATES.__getitem__)


def test_a_search_over_prefixes_changes_the_distribution_and_the_algorithm_does_not() -> None:
    found = first_tokens(round_law(TARGET, DRAFTER, 0, 2, anticipating), TARGET, 1)
    np.testing.assert_allclose(found, [0.85, 0.15], atol=1e-7)
    law = round_law(TARGET, DRAFTER, 0, 2, lambda tokens: admit([second_known(tokens)], RATES.__getitem__)[0])
    np.testing.assert_allclose(first_tokens(law, TARGET, 1), [0.7, 0.3], atol=1e-7)


COSTS = RoundCosts(StepTimes(1.0, 0.2, (StepTime(2, 1.1), StepTime(4, 1.6))))


def sureness(tokens: tuple[int, ...], size: int) -> np.ndarray:
    """Logits of confidences; each knows the tokens before its draft."""
    return np.linspace(-2.5, 2.5, size)[((size - 1) * np.array(tokens[:-1]) + 1) % size]


def paced(size: int, asynchronous: bool) -> Pace:
    return Pace(COSTS, 3, (1.0, 0.7, 1.3), AsyncScheduler() if asynchronous else admit)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", ["all", "two", "none", "confidence", "estimates"])
def test_two_rounds_have_the_targets_distribution(seed: int, rule: str) -> None:
    """To 1e-9, whatever the drafter, with fewer drafts than a block has, and cut short by confidence."""
    size, block = 4, 3
    p, q = chain(seed, size, 1.5), chain(seed + 10, size)
    rules = {
        "all": lambda tokens: block,
        "two": lambda tokens: 2,
        "none": lambda tokens: 0,
        "confidence": lambda tokens: paced(size, False).lengths([block], [sureness(tokens, size)])[0],
        "estimates": lambda tokens: paced(size, False).lengths([block], None)[0],
    }
    if rule == "confidence":
        assert {rules[rule](tokens) for tokens in product(range(size), repeat=block + 1)} == {0, 1, 3}
    law = after(round_law(p, q, 1, block, rules[rule]), lambda anchor: round_law(p, q, anchor, block, rules[rule]))
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(first_tokens(law, p, 5), target_law(p, 1, 5), rtol=0, atol=1e-9)


def test_drafts_that_are_certain_keep_the_distribution_too() -> None:
    p = chain(5, 6)
    for count in range(4):
        found = first_tokens(verdicts(p, None, (1, 4, 2, 0), count), p, 3)
        np.testing.assert_allclose(found, target_law(p, 1, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_sequences_that_share_a_step_stay_independent(asynchronous: bool) -> None:
    """One is verified as far as the other's confidences say too, and still both have the target's distribution."""
    size, block, anchors = 3, 3, (0, 2)
    p, q = chain(3, size, 1.5), chain(4, size)
    past = [np.log([9.0, 1.0, 0.5]), np.log([0.3, 4.0, 4.0])]
    result = np.zeros((size,) * 4)
    seen = set()
    for (first, one), (second, other) in product(
        drafted(q, anchors[0], block).items(), drafted(q, anchors[1], block).items()
    ):
        pace = paced(size, asynchronous)
        for _ in range(2):
            pace.lengths([block, block], past)  # what the asynchronous rule goes by
        lengths = pace.lengths([block, block], [sureness(first, size), sureness(second, size)])
        seen.add(tuple(lengths))
        laws = (first_tokens(verdicts(p, q, t, n), p, 2) for t, n in zip((first, second), lengths, strict=True))
        result += one * other * np.multiply.outer(*laws)
    assert asynchronous or len(seen) > 1
    expected = np.multiply.outer(target_law(p, anchors[0], 2), target_law(p, anchors[1], 2))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9)
