"""Compiled artifacts that look drafts up: the tokens of plain decoding, whatever the cache and the batch."""

import dataclasses
from pathlib import Path

import pytest

from dspark_compiler.artifact import Artifact, StepTime, StepTimes
from dspark_compiler.config import CompileConfig
from dspark_compiler.driver import compile_model
from dspark_compiler.runtime.engine import Engine
from dspark_compiler.runtime.sampling import SamplingParams
from tests.bench import tiny
from tests.threads import check_threads

# Drafting always seems to pay, or tiny models would park at once.
EAGER_TIMES = StepTimes(1.0, 0.0, (StepTime(4, 1.01), StepTime(8, 1.02)))


def engines(folder: Path, **options: object) -> tuple[Engine, Engine]:
    """With heads and without."""
    config = CompileConfig(
        output=folder / "a.dspark", heads=Path("ngram"), prefill_widths=(16,), max_batch=3, check=False, **options
    )
    artifact = compile_model(str(tiny.source()), config)
    heads = artifact.manifest.heads
    assert heads is not None
    assert heads.times is not None
    eager = dataclasses.replace(artifact.manifest, heads=dataclasses.replace(heads, times=EAGER_TIMES))
    drafting: Artifact = dataclasses.replace(artifact, manifest=eager)
    return Engine(drafting), Engine(artifact, heads=False)


PROMPTS = [[1, 2, 3] * 9, [7], [30, 31, 32, 33, 34, 30, 31]]


@pytest.fixture(scope="module", params=[{}, {"kv_budget": 24, "max_seq_len": 200}], ids=["whole", "pruned"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    return engines(tmp_path_factory.mktemp("rounds"), **request.param)


def test_greedy_tokens(pair: tuple[Engine, Engine]) -> None:
    paced, plain = pair
    drafting = Engine(paced.artifact, paced=False)  # a pace would see that rounds of a tiny model do not pay
    drafting.warm_up()  # leaves nothing behind
    params = SamplingParams(max_new_tokens=150, ignore_eos=True)
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:]):
        found, expected = drafting.complete(prompts, params), plain.complete(prompts, params)
        assert [c.tokens for c in found] == [c.tokens for c in expected]
        assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
        assert [c.kv_slots for c in found] == [c.kv_slots for c in expected]
        assert max(c.accepted_length or 0 for c in found) > 1


def test_a_seed_alone_and_in_a_batch(pair: tuple[Engine, Engine]) -> None:
    drafting, _ = pair
    params = SamplingParams(max_new_tokens=30, temperature=0.7, top_p=0.9, top_k=40, seed=11, ignore_eos=True)
    together = drafting.complete(PROMPTS, params)
    assert [c.tokens for c in together] == [drafting.complete([prompt], params)[0].tokens for prompt in PROMPTS]


def test_a_repetition_penalty_is_plain_decoding(pair: tuple[Engine, Engine]) -> None:
    drafting, plain = pair
    params = SamplingParams(max_new_tokens=30, temperature=0.7, repetition_penalty=1.2, seed=4, ignore_eos=True)
    found, expected = drafting.complete(PROMPTS, params), plain.complete(PROMPTS, params)
    assert [c.tokens for c in found] == [c.tokens for c in expected]
    assert {c.accepted_length for c in found} == {1.0}


def test_threads_change_no_bit(pair: tuple[Engine, Engine]) -> None:
    check_threads(pair[0].artifact.path)
