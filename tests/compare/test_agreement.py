"""Finding differing tokens, telling ties from faults."""

import numpy as np
import pytest

from dspark_compiler.compare.agreement import TIE_MARGIN, disagreements


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_equal_tokens_agree() -> None:
    assert disagreements([1, 0], [logits([0, 2, 1], [3, 2, 1])]) == []


def test_every_difference_is_found_with_its_margins() -> None:
    chunks = [logits([0, 2, 1]), logits([3, 2.5, 1], [5, 0, 1])]
    first, second = disagreements([2, 2, 0], chunks[:1] + chunks[1:])
    assert (first.position, first.token, first.expected) == (0, 2, 1)
    assert (first.margin, first.top2_margin) == (1, 1)
    assert (second.position, second.token, second.expected) == (1, 2, 0)
    assert (second.margin, second.top2_margin) == (2, 0.5)
    assert not first.is_tie
    assert "token 1 is 2, eager's is 0 (margin 2, top-2 margin 0.5)" in str(second)


@pytest.mark.parametrize(("gap", "tie"), [(TIE_MARGIN / 4, True), (TIE_MARGIN * 4, False)])
def test_a_tie_is_a_gap_within_rounding(gap: float, tie: bool) -> None:
    (found,) = disagreements([0], [logits([1, 1 + gap])])
    assert found.is_tie is tie


def test_a_row_is_needed_for_each_token() -> None:
    with pytest.raises(AssertionError):
        disagreements([0, 0], [logits([1, 0])])
