"""Text as it streams: whole characters, leading spaces, stop strings across pieces."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.errors import ArtifactError
from dspark_compiler.runtime.stop import StopFilter
from dspark_compiler.runtime.tokenizer import TextStream, Tokenizer
from tests.runtime import toy

BYTES = Tokenizer(toy.tokenizer().to_str(), "toy")


def sentencepiece_style() -> Tokenizer:
    """Llama 2's kind: words begin with U+2581, bytes fall back to <0xNN>, the first word's space is dropped."""
    words = ["<unk>", "<s>", "</s>", "▁Hello", "▁", "H", "ello", "▁there", "world", "!"]
    vocabulary = {word: i for i, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    result = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    decoders = tokenizers.decoders
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    result.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(result.to_str(), "sentencepiece")


def stream(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> list[str]:
    text = TextStream(tokenizer, prompt)
    return [*(text.push(token) for token in tokens), text.finish()]


@given(st.text(max_size=30), st.text(max_size=5))
@settings(deadline=None)
def test_any_text_comes_out_whole_and_in_whole_characters(text: str, prompt: str) -> None:
    pieces = stream(BYTES, BYTES.encode(prompt), list(text.encode()))
    assert "".join(pieces) == text
    # A character comes with its last byte, not later.
    ends = [text[i] for i in range(len(text))]
    if "\ufffd" not in text:
        assert [piece for piece in pieces if piece] == ends


@given(st.lists(st.integers(0, 255), max_size=40))
@settings(deadline=None)
def test_bytes_that_are_no_text_come_out_as_decoding_them_at_once(tokens: list[int]) -> None:
    assert "".join(stream(BYTES, [65], tokens)) == bytes(tokens).decode("utf-8", errors="replace")


def test_endless_broken_bytes_are_not_held_forever() -> None:
    assert len("".join(stream(BYTES, [], [0xFF] * 500)[:-1])) > 400


def test_special_tokens_have_no_text() -> None:
    assert stream(BYTES, [65], [66, toy.EOS, 67]) == ["B", "", "C", ""]


def test_a_word_keeps_its_space_after_a_prompt() -> None:
    tokenizer = sentencepiece_style()
    assert stream(tokenizer, [1, 3], [7, 4, 8, 9]) == [" there", " ", "world", "!", ""]


def test_the_first_word_of_all_has_no_space() -> None:
    tokenizer = sentencepiece_style()
    assert stream(tokenizer, [1], [3, 7]) == ["Hello", " there", ""]


def test_byte_fallback_makes_characters() -> None:
    tokenizer = sentencepiece_style()
    first = 10  # <0x00>
    tokens = [3, *(first + byte for byte in "é€😀".encode()), 9]
    pieces = stream(tokenizer, [1], tokens)
    assert [piece for piece in pieces if piece] == ["Hello", "é", "€", "😀", "!"]


def test_a_character_the_prompt_began_is_shown_whole() -> None:
    assert stream(BYTES, [65, 0xE2, 0x82], [0xAC, 66]) == ["€", "B", ""]


def test_unfinished_bytes_at_the_end_show_as_replacement() -> None:
    assert stream(BYTES, [], [65, 0xE2, 0x82]) == ["A", "", "", "\ufffd"]


def test_a_file_that_is_no_tokenizer_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match=r"^x/tokenizer\.json: not a tokenizer"):
        Tokenizer('{"model": 3}', "x/tokenizer.json")


def test_truncation_and_padding_of_training_are_off() -> None:
    raw = toy.tokenizer()
    raw.enable_truncation(3)
    raw.enable_padding(length=20)
    assert Tokenizer(raw.to_str(), "t").encode("abcdef") == [toy.BOS, *b"abcdef"]
    assert Tokenizer(raw.to_str(), "t").encode("ab", special=False) == [*b"ab"]


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(0, 1 << 30))
def test_stop_strings_cut_the_text_wherever_the_pieces_break(text: str, stops: list[str], cuts: int) -> None:
    pieces, start = [], 0
    for end in range(1, len(text) + 1):
        if cuts >> end & 1 or end == len(text):
            pieces.append(text[start:end])
            start = end
    stop_filter = StopFilter(stops)
    shown = ""
    for piece in pieces:
        shown += stop_filter.push(piece)
        assert text.startswith(shown)
        if stop_filter.stopped:
            break
    shown += stop_filter.finish()
    found = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    assert stop_filter.stopped == bool(found)
    if not found:
        assert shown == text
    else:
        assert not any(stop in shown for stop in stops)
        assert shown in {text[:begin] for _, begin in found}


def test_text_is_held_no_longer_than_it_could_be_a_stop_string() -> None:
    stop_filter = StopFilter(["END"])
    assert [stop_filter.push(piece) for piece in ["a", "E", "N", "x", "E", "E"]] == ["a", "", "", "ENx", "", "E"]
    assert stop_filter.finish() == "E"


def test_nothing_follows_a_stop_string() -> None:
    stop_filter = StopFilter(["."])
    assert stop_filter.push("Yes. No") == "Yes"
    assert stop_filter.push("more") == ""
    assert stop_filter.finish() == ""
