"""Plain decoding by an artifact that draws its own tokens: the next step is made before the host knows the last one."""

import pytest

from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.strategy import Autoregressive
from tests.runtime.markov import MarkovExecutor, tables
from tests.runtime.test_speculative import PROMPTS, generate, sequences

OPTIONS = {"batch": 3, "max_seq_len": 60}


def test_greedy_tokens_are_those_that_the_host_draws() -> None:
    params = [SamplingParams(max_new_tokens=n) for n in (1, 23, 90)]
    made = []
    for draws in (False, True):
        executor = MarkovExecutor(*tables(4), **OPTIONS, draws=draws)
        strategy = Autoregressive(executor)
        made += [generate(executor, strategy, sequences(executor, PROMPTS, *params, eos=6)) for _ in range(2)]
    for other in made[1:]:
        assert [s.tokens for s in other] == [s.tokens for s in made[0]]
        assert [s.finish_reason for s in other] == [s.finish_reason for s in made[0]]


def test_no_step_is_made_that_no_sequence_could_need() -> None:
    executor = MarkovExecutor(*tables(4), **OPTIONS, draws=True)
    params = [SamplingParams(max_new_tokens=n) for n in (1, 5, 9)]
    generate(executor, Autoregressive(executor), sequences(executor, PROMPTS, *params))
    assert executor.calls == ["decode"] * 8


def test_a_seed_reproduces_a_sequence_alone_and_in_a_batch() -> None:
    executor = MarkovExecutor(*tables(4), **OPTIONS, draws=True)
    seeded, others = SamplingParams(30, temperature=0.9, seed=3), SamplingParams(40, temperature=1.3)
    together = generate(executor, Autoregressive(executor), sequences(executor, PROMPTS, seeded, others, others))
    (alone,) = generate(executor, Autoregressive(executor), sequences(executor, PROMPTS[:1], seeded))
    assert together[0].tokens == alone.tokens


@pytest.mark.parametrize("tokens", [[4, 5, 6], [12, 2, 30]])
def test_penalized_sequences_are_drawn_by_the_host(tokens: list[int]) -> None:
    params = [SamplingParams(tokens[0], repetition_penalty=1.4), *(SamplingParams(n) for n in tokens[1:])]
    made = []
    for draws in (False, True):
        executor = MarkovExecutor(*tables(4), **OPTIONS, draws=draws)
        made.append(generate(executor, Autoregressive(executor), sequences(executor, PROMPTS, *params)))
    assert [s.tokens for s in made[0]] == [s.tokens for s in made[1]]
