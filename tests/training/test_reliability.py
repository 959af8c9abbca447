"""Measures of confidences against definitions written out."""

import numpy as np
import pytest

from dspark_compiler.runtime.scheduler import sigmoid, survival
from dspark_compiler.training import reliability
from dspark_compiler.training.reliability import Rollouts


def rollouts(logits: object, drafted: list[int], accepted: list[int]) -> Rollouts:
    n = len(drafted)
    return Rollouts(
        None if logits is None else np.asarray(logits, dtype=np.float64),
        np.asarray(drafted),
        np.asarray(accepted),
        np.arange(n),
    )


def test_acceptance_is_conditional_and_knows_cut_blocks() -> None:
    made = rollouts(None, [3, 3, 3, 1, 2], [3, 0, 1, 1, 2])
    # Four of five stay at first; of four that stayed, one was cut there, and two of the other three stay.
    assert reliability.acceptance(made, 4) == (0.8, 2 / 3, 0.5 + 0.5, None)


def test_survival_is_the_product_of_confidences() -> None:
    logits = np.asarray([[0.0, np.log(3.0)]])
    np.testing.assert_allclose(survival(logits, ()), [[0.5, 0.375]])
    np.testing.assert_allclose(survival(logits, (2.0, 0.5)), [[0.5, 0.45]])
    np.testing.assert_allclose(sigmoid(np.asarray([-1e4, 0.0, 1e4])), [0, 0.5, 1])


def test_calibration_error_bin_by_bin() -> None:
    predicted = np.asarray([0.11, 0.13, 0.62, 0.63, 0.64, 1.0])
    happened = np.asarray([False, True, True, True, False, True])
    expected = (2 * abs(0.12 - 0.5) + 3 * abs(0.63 - 2 / 3) + abs(1.0 - 1.0)) / 6
    assert reliability.calibration_error(predicted, happened) == pytest.approx(expected)
    assert reliability.calibration_error(predicted[:0], happened[:0]) == 0


def test_survival_error_of_blocks_that_got_that_far() -> None:
    made = rollouts([[0.0, 0.0]] * 4, [2, 2, 1, 2], [2, 0, 1, 1])
    # First position: predicted 0.5, three of four stay. Second: 0.25, one of the three that were looked at.
    assert reliability.survival_errors(made, ()) == pytest.approx((0.25, 1 / 3 - 0.25))


def test_exact_confidences_err_by_chance() -> None:
    """The error that is foretold is the mean over many worlds in which the confidences are right."""
    generator = np.random.default_rng(4)
    logits = generator.normal(0.5, 1.0, (400, 2))
    kept = sigmoid(logits)
    errors = []
    for _ in range(300):
        accepted = (generator.random((400, 2)) < kept).cumprod(1).sum(1)
        errors.append(reliability.survival_errors(rollouts(logits, [2] * 400, accepted.tolist()), ()))
    foretold = reliability.errors_by_chance(rollouts(logits, [2] * 400, [0] * 400), ())
    np.testing.assert_allclose(foretold, np.mean(errors, axis=0), rtol=0.05)


def test_auc_counts_pairs() -> None:
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 6, 60).astype(np.float64)
    happened = generator.random(60) < 0.2 + 0.1 * scores
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[happened] for b in scores[~happened]]
    assert reliability.auc(scores, happened) == pytest.approx(np.mean(pairs))
    assert reliability.auc(scores, np.ones(60, dtype=bool)) == 0.5


def test_discrimination_looks_at_blocks_that_got_there() -> None:
    made = rollouts([[1.0, 5.0], [2.0, 1.0], [3.0, 2.0], [4.0, 9.0]], [2, 2, 2, 1], [0, 1, 2, 1])
    assert reliability.discrimination(made) == (1.0, 1.0)
    assert reliability.discrimination(rollouts([[4.0], [3.0]], [1, 1], [0, 1])) == (0.0,)
