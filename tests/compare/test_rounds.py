"""The part of the check that concerns heads, on the toy model."""

from pathlib import Path

import pytest

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.compiled import greedy
from dspark_compiler.compare.greedy import Answer
from dspark_compiler.compare.rounds import require_same_tokens_with_heads
from dspark_compiler.errors import CheckFailedError
from dspark_compiler.runtime.executor import Executor
from tests.runtime import toy, toy_heads


@pytest.mark.parametrize("drafter", [False, True])
def test_the_same_tokens_pass_and_others_are_named(tmp_path: Path, drafter: bool) -> None:
    artifact = Artifact.open(toy_heads.write(tmp_path / "toy.dspark", drafter=drafter))
    executor = Executor(artifact)
    answers = [Answer(prompt, list(greedy(executor, prompt, 9)), []) for prompt in ([1, 2, 3], [4] * 20)]
    found = require_same_tokens_with_heads(artifact, executor, answers)
    assert found is not None
    assert found >= 1
    answers[1].tokens[4] += 1
    with pytest.raises(CheckFailedError, match=r"built-in prompt 1 \(20 tokens\): token 4 is \d+, without heads \d+"):
        require_same_tokens_with_heads(artifact, executor, answers)


def test_without_heads_there_is_nothing_to_check(tmp_path: Path) -> None:
    artifact = Artifact.open(toy.write(tmp_path / "toy.dspark"))
    assert require_same_tokens_with_heads(artifact, Executor(artifact), []) is None
