"""Temperatures are found again where confidences were bent by them, and left out where they do not help."""

import numpy as np
import pytest

from dspark_compiler.errors import InputError
from dspark_compiler.training.calibration import GRID, calibrate, fit_temperatures
from dspark_compiler.training.reliability import Rollouts, discrimination, survival_errors

G = 3
BENT = (0.5, 2.0, 4.0)


def drafts(n: int, bend: tuple[float, ...], seed: int = 0) -> Rollouts:
    """Blocks whose drafts stay with known probabilities; logits are the true ones times ``bend``."""
    generator = np.random.default_rng(seed)
    true = generator.normal(1.0, 1.5, (n, G))
    stays = generator.random((n, G)) < 1 / (1 + np.exp(-true))
    return Rollouts(true * np.asarray(bend), np.full(n, G), np.cumprod(stays, axis=1).sum(axis=1), np.arange(n) // 10)


def test_the_grid_begins_at_one_and_is_symmetric() -> None:
    assert GRID[0] == 1.0
    assert sorted(GRID) == pytest.approx(sorted(1 / value for value in GRID))
    assert (min(GRID), max(GRID), len(GRID)) == (0.125, 8.0, 61)


def test_bent_confidences_are_bent_back() -> None:
    assert fit_temperatures(drafts(60_000, BENT)) == pytest.approx(BENT, rel=0.16)
    found = calibrate(drafts(60_000, BENT))
    assert found.temperatures == pytest.approx(BENT, rel=0.16)
    assert max(found.ece_after) < 0.012
    assert min(found.ece_before) > 0.04
    # A draft that stays surely and one that surely does not are told apart, bent or not.
    straight = drafts(60_000, (1.0,) * G)
    assert found.auc == pytest.approx(discrimination(straight.select(straight.origin % 2 == 1)))
    assert min(found.auc) > 0.75


def test_each_position_is_fitted_with_those_before_it_fixed() -> None:
    """By hand: the best of the grid for the product, position by position."""
    made = drafts(800, BENT, seed=3)
    assert made.logits is not None
    chosen: list[float] = []
    for position in range(G):
        errors = []
        for value in GRID:
            product = np.ones(800)
            for i, temperature in enumerate([*chosen, value]):
                product = product / (1 + np.exp(-made.logits[:, i] / temperature))
            error = 0.0
            for low in range(20):
                inside = (product >= low / 20) & (product < (low + 1) / 20)
                if inside.any():
                    happened = made.accepted[inside] > position
                    error += inside.sum() / 800 * abs(happened.mean() - product[inside].mean())
            errors.append(error)
        chosen.append(GRID[int(np.argmin(errors))])
    assert fit_temperatures(made) == pytest.approx(chosen)


def shifted(n: int, by: tuple[float, ...], seed: int = 0) -> Rollouts:
    """Blocks whose drafts stay more often than their logits say: the true ones are higher ``by`` that much."""
    made = drafts(n, (1.0,) * G, seed)
    assert made.logits is not None
    return Rollouts(made.logits - np.asarray(by), made.drafted, made.accepted, made.origin)


def test_confidences_that_are_too_low_are_shifted() -> None:
    """No temperature does that."""
    by = (0.0, 0.4, 0.9)
    found = calibrate(shifted(60_000, by))
    assert found.shifts == pytest.approx(by, abs=0.11)
    assert found.temperatures == pytest.approx((1.0,) * G, rel=0.1)
    assert max(found.ece_after) < 0.012
    assert max(found.ece_before) > 0.08
    judged = shifted(60_000, by, seed=1)
    assert np.mean(survival_errors(judged, fit_temperatures(judged))) > 0.03
    assert np.mean(survival_errors(judged, found.temperatures, found.shifts)) < 0.012


def test_what_does_not_help_is_not_applied() -> None:
    good, bad = drafts(3000, (1.0,) * G), drafts(3000, BENT, seed=1)
    assert good.logits is not None
    assert bad.logits is not None
    # Temperatures are fitted on the even prompts, and judged by the odd ones.
    logits = np.where((good.origin % 2 == 0)[:, None], bad.logits, good.logits)
    accepted = np.where(good.origin % 2 == 0, bad.accepted, good.accepted)
    mixed = Rollouts(logits, good.drafted, accepted, good.origin)
    found = calibrate(mixed)
    assert found.temperatures == found.shifts == ()
    assert found.ece_after == found.ece_before == survival_errors(mixed.select(good.origin % 2 == 1), ())


@pytest.mark.parametrize(("n", "message"), [(100, "50 drafted blocks"), (395, "195 drafted blocks to judge")])
def test_too_few_rounds(n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(drafts(n, BENT))
