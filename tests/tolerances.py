"""How far compiled results may be from eager ones; the one place that says so."""

from typing import TypedDict


class Tolerance(TypedDict):
    """As numpy.testing.assert_allclose takes it."""

    rtol: float
    atol: float


# Logits of a whole model, by type of the weights; sums are float32 in every case.
LOGITS: dict[str, Tolerance] = {
    "float32": {"rtol": 1e-3, "atol": 2e-4},
    "float16": {"rtol": 2e-2, "atol": 2e-2},
    "bfloat16": {"rtol": 1e-1, "atol": 1e-1},
}
