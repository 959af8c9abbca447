"""Texts that say what others already say: the same words, or a run of words in common."""

import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+")


class Overlap:
    """Runs of ``words`` words, without regard to case and punctuation, of texts that must not be met again.

    Of a text with fewer words, all of them are one run.
    """

    def __init__(self, texts: Iterable[str], words: int) -> None:
        self._runs: set[tuple[str, ...]] = set()
        for text in texts:
            found = split_words(text)
            if found:
                self._runs.update(_runs(found, min(words, len(found))))
        self._lengths = sorted({len(run) for run in self._runs})

    def __contains__(self, text: str) -> bool:
        """Whether the text has one of these runs."""
        found = split_words(text)
        return any(run in self._runs for length in self._lengths for run in _runs(found, length))


def split_words(text: str) -> tuple[str, ...]:
    """Its words, in lower case."""
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[begin : begin + length]) for begin in range(len(words) - length + 1))
