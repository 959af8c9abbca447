"""Texts that share a run of words with others are found, whatever their case and punctuation."""

import pytest

from dspark_compiler.training.overlap import Overlap, split_words

EXCLUDED = ("One two, three four five; six!", "Who am I?", "  ")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("zero ONE two three -- four", True),
        ("three four five six seven", True),
        ("one two three", False),
        ("one two four three", False),
        ("well, who am I", True),  # a shorter text as a whole
        ("who am", False),
        ("", False),
        ("six. Who am", False),  # runs do not go from one text to the next
    ],
)
def test_runs_of_four_words(text: str, found: bool) -> None:
    assert (text in Overlap(EXCLUDED, 4)) == found


def test_nothing_is_excluded() -> None:
    assert "one two three four" not in Overlap([], 2)


def test_words() -> None:
    assert split_words("It's 3.5 ÄPFEL,\n_") == ("it", "s", "3", "5", "äpfel", "_")
