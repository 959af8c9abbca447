"""Artifacts with heads, end to end on the toy model: the same tokens in fewer rounds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact, HeadsInfo, StepTime, StepTimes
from dspark_compiler.errors import ArtifactError
from dspark_compiler.runtime.engine import Engine, load
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Anchors, Drafts
from dspark_compiler.runtime.sampling import SamplingInputs, SamplingParams
from dspark_compiler.runtime.step_times import measure
from tests.runtime import toy, toy_heads


@pytest.fixture(scope="module", params=["ngram", "dspark"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "toy.dspark"
    return toy_heads.write(folder, drafter=request.param == "dspark")


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    return load(path)


PROMPTS = [[1, 2, 3], [7] * 20, [30, 31, 32, 33, 34]]


def test_tokens_are_those_without_heads(engine: Engine, path: Path) -> None:
    params = SamplingParams(max_new_tokens=25, ignore_eos=True)
    plain = load(path, heads=False)
    for prompts in (PROMPTS, PROMPTS[:1], [[1] * 40, [2, 3], [4] * 46]):
        together, alone = engine.complete(prompts, params), plain.complete(prompts, params)
        assert [c.tokens for c in together] == [c.tokens for c in alone]
        assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]
        assert [c.kv_slots for c in together] == [c.kv_slots for c in alone]
        assert [c.accepted_length for c in alone] == [None] * len(prompts)
        for completion in together:
            assert completion.accepted_length == (len(completion.tokens) - 1) / completion.rounds


def test_drafts_stay_sometimes(path: Path) -> None:
    """Lookup finds what repeats in long answers; the drafter is right at the beginning of short ones."""
    answers = [([n], 4) for n in range(10)] + [([n, n + 1], 40) for n in range(10)]
    engine = Engine(Artifact.open(path), paced=False)  # the toy's rounds do not pay
    done = [engine.complete([p], SamplingParams(max_new_tokens=count, ignore_eos=True))[0] for p, count in answers]
    assert max(c.accepted_length or 0 for c in done) > 1.2


def anchors(tokens: list[int], length: int) -> Anchors:
    return Anchors(np.array(tokens), np.full(toy.BATCH, length), np.full(toy.BATCH, length))


def test_a_round_confirms_the_anchor_and_what_stays(tmp_path: Path) -> None:
    executor = Executor(Artifact.open(toy_heads.write(tmp_path / "a.dspark", drafter=False)))
    assert (executor.block_size, executor.round_widths) == (0, (toy.VERIFY,))
    prompt, reference = [3, 4, 5], toy.Reference()
    for row in range(toy.BATCH):
        executor.prefill(row, prompt, 0, 0)
    truth = reference.greedy([*prompt, 9], 3, eos=None)
    wrong = (truth[1] + 1) % toy.V
    drafts = Drafts(np.array([truth[:2], [truth[0], wrong], truth[:2]]), np.full(3, 2))
    sampling, numbers = SamplingInputs.of(3, {}), np.zeros((3, 3), np.float32)
    verdict = executor.speculate(anchors([9] * 3, 3), drafts, [2, 2, 1], numbers, sampling)
    assert verdict.accepted.tolist() == [2, 1, 1]
    assert verdict.following.tolist() == [truth[2], truth[1], truth[1]]
    np.testing.assert_array_equal(verdict.first_logits(1), reference.logits([*prompt, 9]))
    for row, stay in enumerate(verdict.accepted):
        tokens = [*prompt, 9, *truth[:stay], 11]
        columns = np.zeros((4, 3), np.int64)
        columns[:, row] = 11, len(tokens) - 1, len(tokens) - 1, 1
        np.testing.assert_array_equal(executor.decode(*columns)[row], reference.logits(tokens))


def test_what_was_drafted_from_goes_from_call_to_call(tmp_path: Path) -> None:
    executor = Executor(Artifact.open(toy_heads.write(tmp_path / "a.dspark", drafter=True)))
    sampling, zeros = SamplingInputs.of(3, {}), np.zeros((3, 2), np.float32)
    for row in range(toy.BATCH):
        executor.prefill(row, [5, 6], 0, 0)
    drafts = executor.draft(anchors([9, 10, 11], 2), zeros, sampling)
    table = toy.tables()[0]
    assert drafts.tokens[:, 0].tolist() == table[[9, 10, 11]].argmax(1).tolist()
    assert drafts.confidence is not None
    assert drafts.confidence.tolist() == [[4.0, 4.0]] * 3
    truth = [toy.Reference().greedy([5, 6, anchor], 1, eos=None)[0] for anchor in (9, 10, 11)]
    right = Drafts(np.array([[token, 0] for token in truth]), drafts.counts, drafts.probs)
    numbers = np.zeros((3, 3), np.float32)
    # A token it was not drawn from stays in no row of this accept; a row left alone confirms nothing.
    verdict = executor.speculate(anchors([9, 10, 11], 2), right, [1, -1, 1], numbers, sampling)
    drawn = [int(drafts.tokens[row, 0] == truth[row]) for row in range(3)]
    assert verdict.accepted[[0, 2]].tolist() == [drawn[0], drawn[2]]
    columns = np.zeros((4, 3), np.int64)
    columns[:, 1] = 10, 2, 2, 1
    np.testing.assert_array_equal(executor.decode(*columns)[1], toy.Reference().logits([5, 6, 10]))


@pytest.mark.parametrize("drafter", [False, True])
def test_step_times_are_measured_if_the_artifact_has_none(tmp_path: Path, drafter: bool) -> None:
    artifact = Artifact.open(toy_heads.write(tmp_path / "a.dspark", drafter=drafter, times=None))
    times = measure(Executor(artifact))
    assert times.decode_ms > 0
    assert (times.draft_ms > 0) == drafter
    assert [step.tokens for step in times.verify] == [toy.VERIFY]
    assert times.verify[0].ms > 0
    (completion,) = Engine(artifact).complete([[1, 2, 3]], SamplingParams(max_new_tokens=9, ignore_eos=True))
    assert completion.tokens == tuple(toy.Reference().greedy([1, 2, 3], 9, eos=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 4}, "heads.block_size 4: the entry point draft makes 2 tokens"),
        ({"temperatures": (1.0,)}, "heads.temperatures: not one a draft"),
        ({"shifts": (1.0,)}, "heads.shifts: not one a draft"),
        (
            {"times": StepTimes(1.0, 0.0, (StepTime(2, 1.0),))},
            r"heads.times.verify: widths \(2,\), the entry points have",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    artifact = Artifact.open(toy_heads.write(tmp_path / "a.dspark", drafter=True))
    assert artifact.manifest.heads is not None
    heads = dataclasses.replace(artifact.manifest.heads, **changes)
    changed = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, heads=heads))
    with pytest.raises(ArtifactError, match=message):
        Engine(changed)
    assert Engine(changed, heads=False).complete([[1, 2]])


def test_heads_without_an_entry_point_to_accept_are_refused(tmp_path: Path) -> None:
    artifact = Artifact.open(toy.write(tmp_path / "a.dspark", heads=HeadsInfo("ngram", "lookup", 2)))
    with pytest.raises(ArtifactError, match="no verify of two tokens or more that has its accept"):
        Engine(artifact)
