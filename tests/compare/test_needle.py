"""Needles: documents of known length, questions with known answers, and models of known memory."""

import re

import pytest

from dspark_compiler.compare.needle import DEPTHS, KINDS, NeedleMaker, is_answered
from dspark_compiler.compare.prompts import long_text
from dspark_compiler.compare.retrieval import answers
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.tokenizer import Tokenizer
from tests.compare.oracle import Reader
from tests.runtime import toy

TOKENIZER = Tokenizer(toy.tokenizer().to_str(), "toy")  # a token a byte, and one at the beginning


def maker(length: int = 3000, seed: int = 0) -> NeedleMaker:
    return NeedleMaker(TOKENIZER, long_text(), length, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_document_hides_what_it_asks_for(kind: str, depth: float) -> None:
    document = maker().document(kind, depth)
    room = sum(question.room for question in document.questions)
    assert 2500 < len(document.ids) + room <= 3000
    text = TOKENIZER.decode(document.ids)
    needles = re.findall(r"The special magic number for (\w+) is (\d+)\.", text)
    assert len(needles) == (1 if kind == "single" else len(DEPTHS))
    for question in document.questions:
        asked = re.search(r"number for (\w+) is$", TOKENIZER.decode(question.ids))
        assert asked is not None
        assert (asked[1], question.answer) in needles
        assert text.index(question.answer) / len(text) == pytest.approx(question.depth, abs=0.1)
    assert document.questions[0].depth == depth
    assert len(document.questions) == (len(DEPTHS) if kind == "multiquery" else 1)


def test_documents_differ_by_index_and_seed_only() -> None:
    first = maker().document("multikey", 0.5)
    assert first == maker().document("multikey", 0.5)
    assert first.ids != maker().document("multikey", 0.5, 1).ids
    assert first.ids != maker(seed=1).document("multikey", 0.5).ids


def test_a_short_text_is_repeated() -> None:
    document = NeedleMaker(TOKENIZER, "One thing. And another!", 2000).document("single", 0.5)
    assert TOKENIZER.decode(document.ids).count("One thing.") > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_with_a_perfect_memory_answers_all(kind: str) -> None:
    assert all(answers(Reader(), TOKENIZER, maker().document(kind, 0.3)))


def test_a_reader_that_forgets_answers_what_it_still_knows() -> None:
    found = [answers(Reader(1250), TOKENIZER, maker().document("single", depth)) for depth in DEPTHS]
    assert found == [[False], [False], [False], [True], [True]]
    document = maker().document("multiquery", 0.1)
    by_depth = dict(
        zip(
            (question.depth for question in document.questions),
            answers(Reader(1250), TOKENIZER, document),
            strict=True,
        )
    )
    assert (by_depth[0.1], by_depth[0.3], by_depth[0.9]) == (False, False, True)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        *(("", None), (" ", None), (" 12", None), (" 12345", True), ("12345", True), (" 123456", True)),
        *((" 13", False), (" a", False), (" 123.", False), (" 12344", False)),
    ],
)
def test_an_answer_is_its_digits(text: str, verdict: bool | None) -> None:
    assert is_answered(text, "12345") is verdict


def test_too_short_and_no_text() -> None:
    with pytest.raises(InputError, match="300 tokens are too few for 5 needles with text between them"):
        maker(300).document("multikey", 0.5)
    with pytest.raises(InputError, match="the haystack holds no text"):
        NeedleMaker(TOKENIZER, "  \n", 300)
