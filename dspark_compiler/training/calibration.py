"""Sequential temperature scaling of confidences (Cheng et al. 2026, sec. 3.2.1).

The scheduler multiplies confidences along a block, so it is the products that must be right. From left to right, each
position gets the temperature, from a grid, that brings its product nearest to how often blocks really stay, with the
temperatures before it fixed.
"""

import numpy as np

from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.heads import Calibration
from dspark_compiler.runtime.scheduler import sigmoid
from dspark_compiler.training.reliability import (
    Rollouts,
    discrimination,
    survival_error,
    survival_errors,
)

# From 1/8 to 8; among equals the one nearest to 1, which comes first, stays.
GRID = tuple(2.0 ** (i / 10) for i in sorted(range(-30, 31), key=abs))

# A bin of 20 should hold a few rounds.
FEWEST_ROUNDS = 200


def calibrate(rollouts: Rollouts) -> Calibration:
    """Temperatures fitted on every other prompt, and what they are worth on the rest.

    Where they do not make the mean error of the rest smaller, there are none.

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
    temperatures = fit_temperatures(fitted)
    before, after = survival_errors(judged, ()), survival_errors(judged, temperatures)
    if not np.mean(after) < np.mean(before):
        temperatures, after = (), before
    return Calibration(temperatures, before, after, discrimination(judged))


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
