"""Budgets that fall with depth. Cai et al. 2024, PyramidKV (arXiv 2406.02069), section 4.1: an arithmetic sequence."""

_STEEPNESS = 20  # the deepest layer gets the mean over this, above the floor; beta of the paper's code


def pyramid_budgets(mean: int, layers: int, floor: int, longest: int) -> tuple[int, ...]:
    """Slots for each layer, the first the most, on average at most ``mean`` and between ``floor`` and ``longest``.

    ``floor`` is what every layer needs whatever is scored: protected edges and room for new tokens. The rest,
    mean - floor on average, falls linearly from about twice of it to a twentieth.
    """
    spread = mean - floor
    low = spread / _STEEPNESS
    high = 2 * spread - low
    if high > longest - floor:
        high = float(longest - floor)
        low = 2 * spread - high
    step = (high - low) / (layers - 1) if layers > 1 else 0.0
    if layers == 1:
        return (mean,)
    return tuple(floor + int(high - layer * step) for layer in range(layers))
