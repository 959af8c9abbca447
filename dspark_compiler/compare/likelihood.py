"""Perplexity from logits. V: vocabulary."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def negative_log_likelihood(tokens: Sequence[int], logits: Iterable[NDArray[np.float32]]) -> float:
    """Minus the summed log-probability of each token after the first, in nats.

    ``logits`` come in chunks [n, V], a row after each token; the last row predicts nothing that is known.
    """
    total, position = 0.0, 0
    following = np.asarray(tokens)[1:]
    for chunk in logits:
        rows = chunk[: len(following) - position].astype(np.float64)
        wanted = following[position : position + len(rows)]
        top = rows.max(axis=1, initial=-np.inf)
        normalizer = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
        total += float((normalizer - rows[np.arange(len(rows)), wanted]).sum())
        position += len(rows)
    return total


def perplexity(nll: float, predicted: int) -> float:
    """Exponential of the mean negative log-likelihood of ``predicted`` tokens."""
    return float(np.exp(nll / predicted))
