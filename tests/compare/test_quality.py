"""The built-in suite and what counts as a loss."""

import dataclasses
import math

import pytest

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.compare.likelihood import negative_log_likelihood, perplexity
from dspark_compiler.compare.origin import tokenizer_of
from dspark_compiler.compare.prompts import long_text
from dspark_compiler.compare.quality import QualityReport, measure_quality, quality_loss, quality_losses
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.executor import Executor
from tests.bench import tiny

REPORT = QualityReport(4096, 20.0, 0.8, 5, 1.0, 1.0, ())


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return tiny.compiled()


def test_an_artifact_loses_nothing_against_itself(artifact: Artifact) -> None:
    unpruned = measure_quality(artifact)
    stages = set()
    again = measure_quality(artifact, unpruned=unpruned, progress=lambda stage, *_: stages.add(stage))
    assert again == unpruned
    assert quality_loss(unpruned, again) == 0
    assert {"retrieval", "agreement", "perplexity"} == stages
    assert "continuations" not in unpruned.to_json()


def test_the_perplexity_is_the_long_texts(artifact: Artifact) -> None:
    ids = tokenizer_of(artifact).encode(long_text())[:40]
    found = measure_quality(artifact, length=40)
    expected = perplexity(negative_log_likelihood(ids, compiled_logits(Executor(artifact), ids)), 39)
    assert (found.length, found.perplexity) == (40, pytest.approx(expected))
    assert (found.retrieval, found.questions) == (None, 0)  # no needle fits 40 bytes


def test_another_model_loses(artifact: Artifact) -> None:
    unpruned = measure_quality(artifact)
    (first, *rest) = unpruned.continuations
    other = dataclasses.replace(first, tokens=first.tokens[::-1], near=first.near[::-1])
    found = measure_quality(artifact, unpruned=dataclasses.replace(unpruned, continuations=(other, *rest)))
    assert found.near_agreement < 1
    assert quality_loss(unpruned, found) == pytest.approx(1 - found.near_agreement)


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        ({}, 0),
        ({"perplexity": 20.4}, 0.02),
        ({"perplexity": 19.0, "retrieval": 1.0}, 0),  # gains
        ({"perplexity": 19.0, "retrieval": 0.6}, 0.25),
        ({"near_agreement": 0.97, "agreement": 0.5}, 0.03),
        ({"perplexity": 20.4, "near_agreement": 0.97, "retrieval": 0.4}, 0.5),
        ({"perplexity": math.nan}, math.inf),
    ],
)
def test_the_loss_is_the_largest(change: dict[str, float], loss: float) -> None:
    pruned = dataclasses.replace(REPORT, **change)
    assert quality_loss(REPORT, pruned) == pytest.approx(loss)
    assert max(quality_losses(REPORT, pruned).values()) == pytest.approx(loss)


def test_losses_by_measure() -> None:
    pruned = dataclasses.replace(REPORT, perplexity=20.4, retrieval=0.6, near_agreement=0.99)
    assert quality_losses(REPORT, pruned) == pytest.approx(
        {"perplexity": 0.02, "retrieval": 0.25, "near_agreement": 0.01}
    )


@pytest.mark.parametrize("none", [0.0, None])
def test_a_model_that_finds_no_needle_has_none_to_lose(none: float | None) -> None:
    unpruned = dataclasses.replace(REPORT, retrieval=none)
    assert quality_loss(unpruned, dataclasses.replace(unpruned, perplexity=20.2)) == pytest.approx(0.01)


def test_without_a_tokenizer(artifact: Artifact) -> None:
    files = {name: info for name, info in artifact.manifest.files.items() if name != "tokenizer.json"}
    bare = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, files=files))
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        measure_quality(bare)
