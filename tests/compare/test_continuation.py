"""Greedy continuations of a reference, and how far another model agrees."""

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.compiled import greedy
from dspark_compiler.compare.continuation import Continuation, agreement, continuations
from dspark_compiler.runtime.executor import Executor
from tests.compare.oracle import Chain
from tests.runtime import toy

PROMPTS = [[7, 200, 3, 3], [90, 31, 250, 18, 4]]


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    return Executor(Artifact.open(toy.write(tmp_path_factory.mktemp("continuation") / "toy.dspark")))


def test_continuations_are_greedy(executor: Executor) -> None:
    steps: list[tuple[int, int]] = []
    made = continuations(executor, PROMPTS, 9, lambda *step: steps.append(step))
    reference = toy.Reference()
    for prompt, found in zip(PROMPTS, made, strict=True):
        assert list(found.tokens) == reference.greedy(prompt, 9, eos=None) == list(greedy(executor, prompt, 9))
        for i, near in enumerate(found.near):
            logits = reference.logits([*prompt, *found.tokens[:i]])
            assert near == set(np.flatnonzero(np.exp(logits - logits.max()) >= 0.5))
            assert found.tokens[i] in near
    assert steps == [(1, 2), (2, 2)]


def test_an_artifact_agrees_with_itself(executor: Executor) -> None:
    made = continuations(executor, PROMPTS, 9)
    found = agreement(executor, made)
    assert (found.tokens, found.same, found.near) == (18, 18, 18)


def test_each_token_is_judged_given_the_references() -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    reference = Continuation(ids("a"), ids("bcxd"), tuple(map(frozenset, (ids("b"), ids("c"), ids("xd"), ids("d")))))
    found = agreement(Chain("abcdx"), [reference])
    # b, c are chosen; d in place of x, which is as good; then 0 after the x that was given.
    assert (found.fraction, found.near_fraction) == (2 / 4, 3 / 4)
