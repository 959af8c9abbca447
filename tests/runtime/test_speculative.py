"""Rounds of drafts against plain decoding of the same model: the same greedy tokens, the same distribution."""

from collections.abc import Iterable

import pytest

from dspark_compiler.artifact import StepTime, StepTimes
from dspark_compiler.runtime.costs import RoundCosts
from dspark_compiler.runtime.drafts import CompiledDrafter, PromptLookup
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.scheduler import admit
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.speculative import Speculative
from dspark_compiler.runtime.strategy import Autoregressive, Strategy, run
from tests.runtime.markov import MarkovExecutor, tables

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
def test_greedy_tokens_are_those_of_plain_decoding(drafter: str, paced: bool, room: int, confidence: bool) -> None:
    """Batches of unequal lengths that end on their own, at the end of the context too."""
    params = [SamplingParams(max_new_tokens=n) for n in (1, 23, 90)]
    options = {"batch": 3, "max_seq_len": 60}
    plain = MarkovExecutor(*tables(4), **options)
    expected = generate(plain, Autoregressive(plain), sequences(plain, PROMPTS, *params, eos=6))
    executor = MarkovExecutor(*tables(4), **options, room=room, confidence=confidence)
    strategy = speculative(executor, drafter, paced=paced)
    for _ in range(2):  # the pace stays from answer to answer
        found = generate(executor, strategy, sequences(executor, PROMPTS, *params, eos=6))
        assert [s.tokens for s in found] == [s.tokens for s in expected]
        assert [s.finish_reason for s in found] == [s.finish_reason for s in expected]
    if room > 1:
        assert any(call.startswith("verify") for call in executor.calls)
