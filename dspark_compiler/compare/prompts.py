"""Built-in prompts and text, as token ids of a given model."""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Protocol

import numpy as np

_RANDOM_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)  # of prompts for a model without a tokenizer


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens the model wants around it."""


def prompt_texts() -> list[str]:
    """The built-in prompts: prose, code, lists, dialogue; none of them longer than twenty tokens or so."""
    return _read("prompts.txt").splitlines()


def sample_text() -> str:
    """About 1500 words of plain English prose, one sentence a line."""
    return _read("text.txt")


def long_text() -> str:
    """About 7000 words of a novel, paragraphs parted by blank lines: a context that matters over thousands of tokens.

    Jane Austen, Pride and Prejudice (1813, public domain), from chapter 22 on, without headings and emphasis.
    """
    return _read("novel.txt")


def windows(ids: Sequence[int], length: int) -> list[list[int]]:
    """``ids`` in pieces of ``length``; the last one may be shorter."""
    return [list(ids[begin : begin + length]) for begin in range(0, len(ids), length)]


def builtin_prompts(tokenizer: Encoder | None, vocab_size: int, longest: int) -> list[list[int]]:
    """The built-in prompts as ids, each cut to ``longest`` tokens; without a tokenizer, fixed random ids."""
    if tokenizer is not None:
        return [tokenizer.encode(text)[:longest] for text in prompt_texts()]
    generator = np.random.default_rng(0)
    lengths = [_RANDOM_LENGTHS[i % len(_RANDOM_LENGTHS)] for i in range(len(prompt_texts()))]
    return [generator.integers(vocab_size, size=min(length, longest)).tolist() for length in lengths]


class TextSampler:
    """Fresh prompts of exact lengths: the sentences of the built-in text in a new order each time.

    Without a tokenizer, random ids.
    """

    def __init__(self, tokenizer: Encoder | None, vocab_size: int, seed: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._generator = np.random.default_rng(seed)

    def draw(self, length: int) -> list[int]:
        """A prompt of ``length`` tokens, unlike those before."""
        if self._tokenizer is None:
            return [int(token) for token in self._generator.integers(self._vocab_size, size=length)]
        text = ""
        ids: Sequence[int] = ()
        while len(ids) < length:
            text += " ".join(self._generator.permutation(sample_text().splitlines())) + " "
            ids = self._tokenizer.encode(text)
        return list(ids[:length])


@cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
