"""Rounds of drafts against plain decoding of the same model: the same greedy tokens, the same distribution."""

from collections.abc import Iterable

import numpy as np
import pytest

from dspark_compiler.artifact import StepTime, StepTimes
from dspark_compiler.runtime.costs import RoundCosts
from dspark_compiler.runtime.drafts import CompiledDrafter, PromptLookup
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.rounds import RoundRecord
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.scheduler import admit
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.speculative import Speculative
from dspark_compiler.runtime.strategy import Autoregressive, Strategy, run
from tests.runtime.markov import MarkovExecutor, V, tables

COSTS = RoundCosts(StepTimes(1.0, 0.1, (StepTime(2, 1.1), StepTime(4, 1.3))))


def speculative(executor: MarkovExecutor, drafter: str = "compiled", *, paced: bool = False) -> Speculative:
    size = executor.block_size
    proposer = CompiledDrafter(executor) if drafter == "compiled" else PromptLookup(executor.batch, size)
    return Speculative(executor, proposer, size, (lambda: Pace(COSTS, size, (), admit)) if paced else None)


def sequences(
    executor: MarkovExecutor, prompts: Iterable[list[int]], *params: SamplingParams, eos: int | None = None
) -> list[SequenceState]:
    prompts = list(prompts)
    params = params * len(prompts) if len(params) == 1 else params
    end = frozenset() if eos is None else frozenset({eos})
    return [
        SequenceState(
            row,
            prompt,
            params[row],
            room=executor.max_seq_len - len(prompt) + 1,
            eos_ids=end,
            tokenizer=None,
            speculative=True,
        )
        for row, prompt in enumerate(prompts)
    ]


def generate(executor: MarkovExecutor, strategy: Strategy, made: list[SequenceState]) -> list[SequenceState]:
    for _ in run(executor, strategy, made):
        pass
    for sequence in made:
        assert sequence.length == sequence.position == len(sequence.prompt) + len(sequence.tokens) - 1
    return made


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 0, 1, 2]]


@pytest.mark.parametrize("drafter", ["compiled", "lookup"])
@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("room", [1, 2, 3, 10**6])
@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("chains", [False, True])
def test_greedy_tokens_are_those_of_plain_decoding(
    drafter: str, paced: bool, room: int, confidence: bool, draws: bool, chains: bool
) -> None:
    """Batches of unequal lengths that end on their own, at the end of the context too."""
    params = [SamplingParams(max_new_tokens=n) for n in (1, 23, 90)]
    options = {"batch": 3, "max_seq_len": 60}
    plain = MarkovExecutor(*tables(4), **options)
    expected = generate(plain, Autoregressive(plain), sequences(plain, PROMPTS, *params, eos=6))
    executor = MarkovExecutor(*tables(4), **options, room=room, confidence=confidence, draws=draws, chains=chains)
    strategy = speculative(executor, drafter, paced=paced)
    for _ in range(2):  # the pace stays from answer to answer
        found = generate(executor, strategy, sequences(executor, PROMPTS, *params, eos=6))
        assert [s.tokens for s in found] == [s.tokens for s in expected]
        assert [s.finish_reason for s in found] == [s.finish_reason for s in expected]
    if room > 1:
        assert any(call.startswith("verify") for call in executor.calls)


def test_nothing_comes_after_an_end_token_inside_a_block() -> None:
    cut = 0
    for eos in range(V):
        executor = MarkovExecutor(*tables(4, closeness=1.0))
        (whole,) = generate(executor, speculative(executor), sequences(executor, [[1]], SamplingParams(20)))
        (ended,) = generate(executor, speculative(executor), sequences(executor, [[1]], SamplingParams(20), eos=eos))
        if eos in whole.tokens:
            assert ended.tokens == whole.tokens[: whole.tokens.index(eos) + 1]
            assert ended.finish_reason == "eos"
            cut += len(executor.rows[0]) > ended.length  # it had confirmed more
    assert cut


def test_rounds_and_accepted_length() -> None:
    executor = MarkovExecutor(*tables(4, closeness=1.0))
    (made,) = generate(executor, speculative(executor), sequences(executor, [[1]], SamplingParams(14)))
    result = made.completion()
    # 13 tokens after the first, 4 a round: the last round needs no draft.
    assert (result.rounds, result.accepted_length) == (4, 13 / 4)
    assert executor.calls == [*["draft", "verify 4"] * 3, "decode"]
    (one,) = generate(executor, speculative(executor), sequences(executor, [[1]], SamplingParams(1)))
    assert (one.completion().rounds, one.completion().accepted_length) == (0, None)


SAMPLED = SamplingParams(max_new_tokens=40, temperature=0.8, seed=3)


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("drafter", ["compiled", "lookup"])
def test_a_seed_reproduces_a_sequence_alone_and_in_a_batch(drafter: str, paced: bool) -> None:
    executor = MarkovExecutor(*tables(4), batch=3, confidence=True)
    others = SamplingParams(max_new_tokens=70, temperature=1.3), SamplingParams(max_new_tokens=25)
    strategy = speculative(executor, drafter, paced=paced)
    together = generate(executor, strategy, sequences(executor, PROMPTS, SAMPLED, *others))
    alone = generate(executor, strategy, sequences(executor, PROMPTS[:1], SAMPLED))
    assert together[0].tokens == alone[0].tokens
    assert (
        together[2].tokens
        == generate(executor, Autoregressive(executor), sequences(executor, [PROMPTS[2]], others[1]))[0].tokens
    )


def test_a_repetition_penalty_is_decoded_without_drafts_among_others_that_draft() -> None:
    params = SamplingParams(max_new_tokens=30, temperature=0.9, repetition_penalty=1.3, seed=1)
    plain = MarkovExecutor(*tables(4), batch=3)
    (expected,) = generate(plain, Autoregressive(plain), sequences(plain, PROMPTS[:1], params))
    executor = MarkovExecutor(*tables(4, closeness=1.0), batch=3)
    records: list[RoundRecord] = []
    strategy = Speculative(executor, CompiledDrafter(executor), 3, observer=records.append)
    made = generate(executor, strategy, sequences(executor, PROMPTS, params, *[SamplingParams(max_new_tokens=40)] * 2))
    assert made[0].tokens == expected.tokens
    assert made[0].rounds == 29
    assert made[1].rounds == 10
    assert {record.row for record in records} == {1, 2}
    assert all(record.accepted == record.drafted for record in records)


def test_the_observer_hears_what_became_of_drafts() -> None:
    executor = MarkovExecutor(*tables(4, closeness=0.3), confidence=True)
    records: list[RoundRecord] = []
    strategy = Speculative(executor, CompiledDrafter(executor), 3, observer=records.append)
    (made,) = generate(executor, strategy, sequences(executor, [[1]], SamplingParams(60, temperature=1.0, seed=0)))
    verified = [record for record in records if record.drafted]
    assert len(verified) == sum(call.startswith("verify") for call in executor.calls)
    assert sum(record.accepted for record in records) + made.rounds == 59
    assert 0 < sum(record.accepted for record in records) < sum(record.drafted for record in records)
    assert records[0].confidence_logits is not None
    assert records[0].confidence_logits.shape == (3,)


def transitions(made: Iterable[SequenceState]) -> np.ndarray:
    """How often each token followed each, of what was generated."""
    counts = np.zeros((V, V))
    for sequence in made:
        np.add.at(counts, (sequence.tokens[:-1], sequence.tokens[1:]), 1)
    return counts


@pytest.mark.parametrize(("drafter", "tokens"), [("compiled", 100_000), ("lookup", 40_000)])
def test_sampled_tokens_follow_the_target(drafter: str, tokens: int) -> None:
    """Chi-square over many tokens of batches of unequal lengths, paced by confidence, with an end token in blocks.

    An end token ends its sequence, so it leads nowhere; and what precedes it is not disturbed by that.
    """
    target, draft = tables(7, 1.0, 0.6)
    eos = 5
    target[:, eos] -= 3  # or sequences are too short
    executor = MarkovExecutor(target, draft, batch=4, confidence=True)
    strategy = speculative(executor, drafter, paced=True)
    counts = np.zeros((V, V))
    length = 37
    seed = 0
    while counts.sum() < tokens:
        params = [SamplingParams(length + 90 * row, temperature=1.0, seed=seed + row) for row in range(4)]
        seed += 4
        made = generate(executor, strategy, sequences(executor, [[seed % V], [1, 2], [3], [4]], *params, eos=eos))
        counts += transitions(made)
    probs = np.exp(target) / np.exp(target).sum(1, keepdims=True)
    rows = [row for row in range(V) if row != eos]
    assert counts[eos].sum() == 0
    expected = probs[rows] * counts[rows].sum(1, keepdims=True)
    chi2 = ((counts[rows] - expected) ** 2 / expected).sum()
    freedom = len(rows) * (V - 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)
    assert sum(call.startswith("verify") for call in executor.calls) > 2000


def test_while_drafts_rest_steps_are_made_ahead_and_tokens_are_the_same() -> None:
    """A drafter that is never right: its group rests for longer and longer."""
    target, _ = tables(4)
    made = []
    for draws in (False, True):
        executor = MarkovExecutor(target, -target, batch=3, draws=draws)
        strategy, ahead = speculative(executor, paced=True), 0
        found = sequences(executor, PROMPTS, *(SamplingParams(max_new_tokens=n) for n in (40, 90, 60)), eos=None)
        for _ in run(executor, strategy, found):
            ahead += strategy._ahead.is_for([s for s in found if s.finish_reason is None])
        made.append([s.tokens for s in found])
        assert (ahead > 40) is draws
    assert made[0] == made[1]


def test_a_pace_hears_of_each_answer_that_begins_and_of_those_of_a_batch_once() -> None:
    began = []

    class Listening(Pace):
        def began(self) -> None:
            began.append(self.wants_drafts())
            super().began()

    target, _ = tables(4)
    executor = MarkovExecutor(target, -target, batch=3, draws=True, chains=True)
    pace = Listening(COSTS, executor.block_size, (), admit)
    strategy = Speculative(executor, CompiledDrafter(executor), executor.block_size, lambda: pace)
    for prompts in (PROMPTS[:1], PROMPTS):
        generate(executor, strategy, sequences(executor, prompts, SamplingParams(40)))
    assert began == [True, False], "the first answer had been parked"
