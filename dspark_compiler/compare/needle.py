"""Retrieval from a long text: sentences with a number each, hidden in a haystack, and questions about them.

The idea, and the sentences' wording, are those of the needle tasks of RULER (arXiv 2404.06654); a question is put as
the beginning of a sentence, so that a model without a chat format can finish it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dspark_compiler.compare.prompts import Encoder
from dspark_compiler.errors import InputError

NeedleKind = Literal["single", "multikey", "multiquery"]
KINDS: tuple[NeedleKind, ...] = ("single", "multikey", "multiquery")

# Where needles lie: the fraction of the haystack's tokens that come before, to the nearest end of a sentence.
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)

DIGITS = 5
_WORDS = (
    *("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket", "kitchen"),
    *("ladder", "market", "needle", "ocean", "pencil", "queen", "river", "silver", "tiger", "umbrella", "valley"),
    *("window", "yellow", "zebra", "anchor", "basket", "camera", "doctor", "eagle", "flower", "guitar"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ANSWER_ROOM = 3  # tokens of an answer beside one a digit, such as a space


@dataclass(frozen=True)
class Question:
    """``ids`` begin the sentence that ``answer``, a string of digits, goes on with; ``depth`` is the needle's."""

    ids: tuple[int, ...]
    answer: str
    depth: float

    @property
    def room(self) -> int:
        """Tokens that question and answer may take together."""
        return len(self.ids) + DIGITS + _ANSWER_ROOM


@dataclass(frozen=True)
class NeedleDocument:
    """Token ids of a text with needles in it, and what is asked, one question after another."""

    kind: NeedleKind
    ids: tuple[int, ...]
    questions: tuple[Question, ...]


class NeedleMaker:
    """Documents of at most ``length`` tokens, questions and answers included, the same for the same ``seed``.

    Raises:
        InputError: ``length`` leaves no room for text between the needles, or ``text`` has none.
    """

    def __init__(self, tokenizer: Encoder, text: str, length: int, seed: int = 0) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._seed = seed
        self._sentences = [" ".join(found.split()) for found in _SENTENCE_END.split(text) if found.strip()]
        self._sizes = [len(tokenizer.encode(" " + sentence, special=False)) for sentence in self._sentences]
        if not sum(self._sizes):
            raise InputError("the haystack holds no text")

    def document(self, kind: NeedleKind, depth: float, index: int = 0) -> NeedleDocument:
        """The ``index``-th document of a kind, whose asked needle lies at ``depth``, one of DEPTHS.

        ``single`` hides one needle; ``multikey`` hides one at each depth and asks for one; ``multiquery`` asks for
        each, in random order, the depth given being the first.
        """
        generator = np.random.default_rng((self._seed, KINDS.index(kind), DEPTHS.index(depth), index))
        depths = [depth] if kind == "single" else list(DEPTHS)
        words = [_WORDS[i] for i in generator.choice(len(_WORDS), len(depths), replace=False)]
        numbers = [str(n) for n in generator.integers(10 ** (DIGITS - 1), 10**DIGITS, len(depths))]
        needles = dict(zip(depths, zip(words, numbers, strict=True), strict=True))
        asked = [depth]
        if kind == "multiquery":
            others = [other for other in DEPTHS if other != depth]
            asked += [others[i] for i in generator.permutation(len(others))]
        questions = tuple(self._question(*needles[at], at, i == 0) for i, at in enumerate(asked))
        room = self._length - sum(question.room for question in questions)
        sentences = {at: _needle(*needle) for at, needle in needles.items()}
        ids = self._hide(sentences, int(generator.integers(len(self._sentences))), room)
        return NeedleDocument(kind, tuple(ids), questions)

    def _question(self, word: str, number: str, depth: float, first: bool) -> Question:
        end = "" if first else "."  # of the answer before
        about = f"the special magic number for {word}"
        text = f"{end}\n\nQuestion: What is {about}?\nAnswer: T{about[1:]} is"
        return Question(tuple(self._tokenizer.encode(text, special=False)), number, depth)

    def _hide(self, needles: dict[float, str], first: int, room: int) -> list[int]:
        """The longest run of sentences from ``first`` on, with the needles, that has at most ``room`` tokens."""
        taken, excess = 0, -room
        while excess < 0:
            excess += self._sizes[(first + taken) % len(self._sizes)]
            taken += 1
        # Sizes do not tell exactly what the sentences take together: encode, drop what is too much, and look again.
        while taken >= len(needles):
            run = [(first + i) % len(self._sentences) for i in range(taken)]
            sentences = [self._sentences[i] for i in run]
            ends = np.cumsum([0, *(self._sizes[i] for i in run)])  # of each sentence, in tokens; [0] before the first
            for depth in sorted(needles, reverse=True):
                sentences.insert(int(np.abs(ends - depth * ends[-1]).argmin()), needles[depth])
            ids = self._tokenizer.encode(" ".join(sentences))
            excess = len(ids) - room
            if excess <= 0:
                return ids
            while excess > 0:
                taken -= 1
                excess -= self._sizes[(first + taken) % len(self._sizes)]
        raise InputError(f"{self._length} tokens are too few for {len(needles)} needles with text between them")


def _needle(word: str, number: str) -> str:
    return f"The special magic number for {word} is {number}."


def is_answered(text: str, answer: str) -> bool | None:
    """Whether the text that goes on with a question gives the answer; None while that is open."""
    found = re.match(r"\s*(\d*)", text)
    digits = found.group(1) if found else ""
    if len(digits) >= len(answer):
        return digits[: len(answer)] == answer
    if not answer.startswith(digits) or (found and text[found.end() :]):
        return False
    return None


def accuracy(answered: Sequence[bool]) -> float:
    """The fraction of questions that were answered."""
    return sum(answered) / len(answered)
