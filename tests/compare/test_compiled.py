"""The artifact's side of comparisons, on the toy model."""

from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.compiled import compiled_logits, greedy
from dspark_compiler.runtime.executor import Executor
from tests.runtime import toy

TOKENS = [7, 200, 3, 3, 90, 31, 250, 18]


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    return Executor(Artifact.open(toy.write(tmp_path_factory.mktemp("compiled") / "toy.dspark")))


@pytest.fixture(scope="module")
def without_verify(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    path: Path = tmp_path_factory.mktemp("plain") / "toy.dspark"
    entries = {name: spec for name, spec in toy.manifest().entry_points.items() if spec.kind in ("prefill", "decode")}
    return Executor(Artifact.open(toy.write(path, entry_points=entries)))


def test_greedy_is_the_models(executor: Executor) -> None:
    assert list(greedy(executor, TOKENS, 9)) == toy.Reference().greedy(TOKENS, 9, eos=None)
    assert list(greedy(executor, TOKENS, 1)) == toy.Reference().greedy(TOKENS, 1, eos=None)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8])  # the toy verifies 3 tokens at a time
def test_logits_of_all_tokens(executor: Executor, count: int) -> None:
    found = np.concatenate([chunk.copy() for chunk in compiled_logits(executor, TOKENS[:count])])
    reference = toy.Reference()
    expected = [reference.logits(TOKENS[: end + 1]) for end in range(count)]
    np.testing.assert_array_equal(found, np.array(expected))


def test_logits_without_verify(without_verify: Executor) -> None:
    found = np.concatenate([chunk.copy() for chunk in compiled_logits(without_verify, TOKENS)])
    reference = toy.Reference()
    np.testing.assert_array_equal(found, [reference.logits(TOKENS[: end + 1]) for end in range(len(TOKENS))])
