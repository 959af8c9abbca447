"""The engine end to end on the toy model: what is generated, when it ends, and what is refused."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import ArtifactError, DSparkError, InputError
from dspark_compiler.runtime.engine import Engine, load
from dspark_compiler.runtime.sampling import SamplingParams, make_generator, next_token
from tests.runtime import toy


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write(tmp_path_factory.mktemp("engine") / "toy.dspark")


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    return load(path)


def reference_sampled(prompt: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
    reference, generator, tokens = toy.Reference(), make_generator(params.seed), list(prompt)
    for _ in range(params.max_new_tokens):
        tokens.append(next_token(reference.logits(tokens), params, tokens, generator))
    return tuple(tokens[len(prompt) :])


def test_greedy_continues_text(engine: Engine) -> None:
    stream = engine.generate("hello wor", SamplingParams(max_new_tokens=12, ignore_eos=True))
    pieces = list(stream)
    expected = toy.Reference().greedy([toy.BOS, *b"hello wor"], 12, eos=None)
    assert stream.completion.tokens == tuple(expected)
    assert "".join(pieces) == stream.completion.text == bytes(expected).decode()
    assert len(pieces) > 1
    assert stream.completion.finish_reason == "length"


def test_each_call_starts_anew(engine: Engine) -> None:
    first, again = (engine.complete([[5, 6, 7]])[0].tokens for _ in range(2))
    engine.complete([[9] * 30])
    assert first == again == engine.complete([np.array([5, 6, 7])])[0].tokens


SAMPLED = SamplingParams(
    max_new_tokens=9, temperature=1.5, top_k=80, top_p=0.97, repetition_penalty=1.1, seed=5, ignore_eos=True
)


@pytest.mark.parametrize(
    "params", [SamplingParams(max_new_tokens=9, ignore_eos=True), SAMPLED], ids=["greedy", "sampled"]
)
def test_a_batch_gives_what_each_prompt_gives_alone(engine: Engine, params: SamplingParams) -> None:
    prompts = [[1, 2, 3], [7] * 20, [30, 31, 32, 33, 34]]
    together = engine.complete(prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        assert completion.prompt_tokens == tuple(prompt)
        assert completion.tokens == engine.complete([prompt], params)[0].tokens == reference_sampled(prompt, params)


def test_sequences_of_a_batch_end_on_their_own(engine: Engine) -> None:
    prompts = [[1] * (toy.SLOTS - 2), [2, 3], [4] * (toy.SLOTS - 10)]
    completions = engine.complete(prompts, SamplingParams(max_new_tokens=8, ignore_eos=True))
    assert [c.finish_reason for c in completions] == ["context", "length", "length"]
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = toy.Reference().greedy(prompt, min(8, toy.SLOTS - len(prompt) + 1), eos=None)
        assert completion.tokens == tuple(expected)


def test_a_prompt_that_fills_the_context_gets_one_token(engine: Engine) -> None:
    (completion,) = engine.complete([[1] * toy.SLOTS], SamplingParams(ignore_eos=True))
    assert (len(completion.tokens), completion.finish_reason) == (1, "context")
    assert (completion.rounds, completion.tpot_ms, completion.kv_slots) == (0, None, toy.SLOTS)


def test_counts_and_times(engine: Engine) -> None:
    (completion,) = engine.complete([[1, 2, 3]], SamplingParams(max_new_tokens=5, ignore_eos=True))
    assert (completion.rounds, completion.kv_slots, completion.accepted_length) == (4, 7, None)
    assert completion.ttft_ms > 0
    assert completion.tpot_ms is not None
    assert completion.tpot_ms > 0


def first_tokens(count: int) -> tuple[list[int], tuple[int, ...]]:
    """A prompt and a greedy continuation in which the last of ``count`` tokens is new."""
    for start in range(200):
        tokens = toy.Reference().greedy([start, 1], count, eos=None)
        if tokens.index(tokens[-1]) == count - 1 and len(tokens) == count:
            return [start, 1], tuple(tokens)
    raise AssertionError("no such prompt")


@pytest.mark.parametrize(
    ("config", "model_eos", "ends"),
    [
        ('{"eos_token_id": LAST}', (toy.EOS,), True),
        ('{"eos_token_id": [250, LAST]}', (toy.EOS,), True),
        ('{"eos_token_id": 250}', "LAST", False),
        ('{"temperature": 0.5}', "LAST", True),
        (None, "LAST", True),
    ],
)
def test_where_end_tokens_come_from(tmp_path: Path, config: str | None, model_eos: object, ends: bool) -> None:
    prompt, tokens = first_tokens(4)
    model = toy.manifest().model
    eos = (tokens[-1],) if model_eos == "LAST" else model_eos
    extra = {} if config is None else {"generation_config.json": config.replace("LAST", str(tokens[-1]))}
    changed = type(model)(**{**vars(model), "eos_token_ids": eos})
    engine = load(toy.write(tmp_path / "a.dspark", extra=extra, model=changed))
    (completion,) = engine.complete([prompt], SamplingParams(max_new_tokens=6))
    assert (completion.finish_reason == "eos") == ends
    if ends:
        assert completion.tokens == tokens
        assert completion.text == bytes(tokens[:-1]).decode(errors="replace")
        (on,) = engine.complete([prompt], SamplingParams(max_new_tokens=6, ignore_eos=True))
        assert len(on.tokens) == 6


def test_an_end_token_that_is_no_id_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"generation_config\.json: eos_token_id '</s>' is not a token id"):
        load(toy.write(tmp_path / "a.dspark", extra={"generation_config.json": '{"eos_token_id": "</s>"}'}))


def test_stop_strings_end_and_cut(engine: Engine) -> None:
    whole = engine.complete(["hello"], SamplingParams(max_new_tokens=12, ignore_eos=True))[0].text
    stop = whole[5:8]
    stream = engine.generate("hello", SamplingParams(max_new_tokens=12, ignore_eos=True, stop=("@@", stop)))
    assert "".join(stream) == stream.completion.text == whole[: whole.index(stop)]
    assert stream.completion.finish_reason == "stop"
    assert len(stream.completion.tokens) == whole.index(stop) + len(stop)


def test_chat_applies_the_template(engine: Engine) -> None:
    stream = engine.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_new_tokens=3))
    list(stream)
    assert stream.completion.prompt_tokens == (toy.BOS, toy.USER, *b"Hi", toy.ASSISTANT)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ("", "the prompt is empty"),
        ([1] * (toy.SLOTS + 1), "the prompt has 49 tokens, the artifact holds 48; .*--max-seq-len"),
        ([1, 2, toy.V], "prompt token 2 is 260, outside the vocabulary of 260"),
        ([-1], "prompt token 0 is -1, outside"),
        ([1, 2.5], r"prompt token 1 is 2\.5, not an integer"),
    ],
)
def test_bad_prompts_are_refused_at_the_call(engine: Engine, prompt: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.generate(prompt)
    with pytest.raises(InputError, match=message):
        engine.complete([[1], prompt])


def test_more_prompts_than_the_artifact_holds(engine: Engine) -> None:
    with pytest.raises(InputError, match="4 prompts, but the artifact holds 3; compile it with --max-batch 4"):
        engine.complete([[1]] * 4)


def test_without_a_tokenizer_ids_work_and_text_says_what_is_missing(tmp_path: Path) -> None:
    engine = load(toy.write(tmp_path / "a.dspark", text=False))
    stream = engine.generate([1, 2], SamplingParams(max_new_tokens=3, ignore_eos=True))
    assert list(stream) == []
    assert len(stream.completion.tokens) == 3
    with pytest.raises(InputError, match=r"no tokenizer\.json.*--prompt-ids"):
        engine.generate("text")
    with pytest.raises(InputError, match="no chat template"):
        engine.chat([{"role": "user", "content": "Hi"}])
    with pytest.raises(InputError, match="stop strings"):
        engine.generate([1], SamplingParams(stop=("x",)))


def test_a_second_stream_in_the_same_thread_is_an_error_until_the_first_is_closed(engine: Engine) -> None:
    first, second = (engine.generate([1, 2], SamplingParams(ignore_eos=True)) for _ in range(2))
    next(first)
    with pytest.raises(DSparkError, match="still streaming"):
        next(second)
    with pytest.raises(DSparkError, match="has not reached its end"):
        _ = first.completion
    first.close()
    third = engine.generate([1, 2], SamplingParams(ignore_eos=True))
    next(third)
    del third  # dropping it is closing it
    assert engine.complete([[1, 2]])


def test_threads_take_turns(engine: Engine) -> None:
    prompts = [[n, n + 1] for n in range(8)]
    expected = [tuple(toy.Reference().greedy(prompt, 20)) for prompt in prompts]
    results: dict[int, tuple[int, ...]] = {}

    def work(index: int) -> None:
        results[index] = engine.complete([prompts[index]], SamplingParams(max_new_tokens=20))[0].tokens

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[index] for index in range(8)] == expected


def test_engines_of_one_process_are_independent(engine: Engine, path: Path) -> None:
    other = Engine(Artifact.open(path))
    stream = engine.generate([1, 2], SamplingParams(max_new_tokens=6))
    next(stream)
    assert other.complete([[3, 4]], SamplingParams(max_new_tokens=6))[0].tokens == tuple(
        toy.Reference().greedy([3, 4], 6)
    )
    list(stream)
    assert stream.completion.tokens == tuple(toy.Reference().greedy([1, 2], 6))
