"""Built-in prompts and fresh ones."""

from dspark_compiler.compare.prompts import TextSampler, builtin_prompts, prompt_texts, sample_text
from dspark_compiler.runtime.tokenizer import Tokenizer
from tests.runtime import toy

TOKENIZER = Tokenizer(toy.tokenizer().to_str(), "toy")


def test_there_are_more_than_twenty_different_prompts() -> None:
    texts = prompt_texts()
    assert len(set(texts)) == len(texts) > 20
    assert all(text.strip() for text in texts)


def test_prompts_are_encoded_and_cut() -> None:
    prompts = builtin_prompts(TOKENIZER, toy.V, 6)
    assert prompts[0] == [toy.BOS, *b"The capital"[:5]]
    assert max(map(len, prompts)) == 6


def test_without_a_tokenizer_prompts_are_fixed_ids_of_several_lengths() -> None:
    prompts = builtin_prompts(None, 50, 13)
    assert prompts == builtin_prompts(None, 50, 13)
    assert len(prompts) == len(prompt_texts())
    assert {len(prompt) for prompt in prompts} == {1, 2, 3, 5, 8, 13}
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)


def test_drawn_prompts_are_text_of_exact_length_and_never_the_same() -> None:
    sampler = TextSampler(TOKENIZER, toy.V)
    drawn = [sampler.draw(300) for _ in range(4)]
    assert [len(ids) for ids in drawn] == [300] * 4
    assert len({tuple(ids) for ids in drawn}) == 4
    sentence = TOKENIZER.decode(drawn[0]).split(".")[0]
    assert sentence in sample_text()


def test_prompts_longer_than_the_text_can_be_drawn() -> None:
    length = 2 * len(sample_text())
    assert len(TextSampler(TOKENIZER, toy.V).draw(length)) == length


def test_seeds_and_models_without_tokenizer() -> None:
    first, again = (TextSampler(None, 9, seed=4).draw(20) for _ in range(2))
    assert first == again != TextSampler(None, 9, seed=5).draw(20)
    assert set(first) <= set(range(9))
