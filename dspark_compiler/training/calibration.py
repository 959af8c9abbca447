"""Sequential temperature scaling of confidences (Cheng et al. 2026, sec. 3.2.1).

The scheduler multiplies confidences along a block, so it is the products that must be right. From left to right, each
position gets the temperature, from a grid, that brings its product nearest to how often blocks really stay, with the
temperatures before it fixed.

A temperature leaves a confidence of one half what it is. Where confidences are too low on the whole, as they are once
whole blocks are judged (they are trained to foresee drafts judged one by one), a shift is what helps.
"""

from itertools import product

import numpy as np

from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.heads import Calibration
from dspark_compiler.runtime.scheduler import sigmoid
from dspark_compiler.training.reliability import (
    Bools,
    Floats,
    Rollouts,
    discrimination,
    survival_error,
    survival_errors,
)

# From 1/8 to 8; among equals the one nearest to 1, which comes first, stays.
GRID = tuple(2.0 ** (i / 10) for i in sorted(range(-30, 31), key=abs))

# From -2 to 2; among equals the one nearest to 0.
SHIFTS = tuple(i / 10 for i in sorted(range(-20, 21), key=abs))

# A bin of 20 should hold a few rounds.
FEWEST_ROUNDS = 200


def calibrate(rollouts: Rollouts) -> Calibration:
    """Temperatures fitted on every other prompt, with or without shifts, and what they are worth on the rest.

    What does not make the mean error of the rest smaller is left out.

    Raises:
        InputError: too few rounds to tell.
    """
    assert rollouts.logits is not None
    judging = rollouts.origin % 2 == 1
    fitted, judged = rollouts.select(~judging), rollouts.select(judging)
    fewest = min(len(fitted.drafted), len(judged.drafted))
    if fewest < FEWEST_ROUNDS:
        raise InputError(
            f"{fewest} drafted blocks to {'fit' if fewest == len(fitted.drafted) else 'judge'} temperatures by, "
            f"{FEWEST_ROUNDS} are wanted; give more --prompts or --new-tokens"
        )
    before = survival_errors(judged, ())
    scalings = ((), ()), (fit_temperatures(fitted), ()), fit_shifted(fitted)
    judgements = [(survival_errors(judged, *scaling), scaling) for scaling in scalings]
    # Among equals the simplest.
    after, (temperatures, shifts) = min(judgements, key=lambda judgement: np.mean(judgement[0]))
    return Calibration(temperatures, before, after, discrimination(judged), shifts)


def fit_temperatures(rollouts: Rollouts) -> tuple[float, ...]:
    """A temperature for each position of the block."""
    assert rollouts.logits is not None
    chosen = []
    before = np.ones(len(rollouts.drafted))
    for position, logits in enumerate(rollouts.logits.T):
        products = {temperature: before * sigmoid(logits / temperature) for temperature in GRID}
        errors = {t: survival_error(rollouts, product, position) for t, product in products.items()}
        best = min(errors, key=errors.__getitem__)
        chosen.append(best)
        before = products[best]
    return tuple(chosen)


def fit_shifted(rollouts: Rollouts) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Temperatures and shifts of each position by maximum likelihood (Platt 1999), among the blocks that got there."""
    assert rollouts.logits is not None
    chosen = []
    for position, logits in enumerate(rollouts.logits.T):
        reached = rollouts.reached(position)
        stayed, scores = rollouts.accepted[reached] > position, logits[reached]

        def loss(scaling: tuple[float, float], scores: Floats = scores, stayed: Bools = stayed) -> float:
            signed = np.where(stayed, 1, -1) * (scores / scaling[0] + scaling[1])
            return float(np.logaddexp(0, -signed).sum())

        chosen.append(min(product(GRID, SHIFTS), key=loss))
    temperatures, shifts = zip(*chosen, strict=True)
    return temperatures, shifts
