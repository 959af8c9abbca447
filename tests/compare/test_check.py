"""The check that ends a compile: passes what is right, names what is wrong."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dspark_compiler.artifact import Artifact, ArtifactWriter
from dspark_compiler.compare.budgets import Budget
from dspark_compiler.compare.check import check
from dspark_compiler.compare.compiled import greedy
from dspark_compiler.compare.prompts import prompt_texts
from dspark_compiler.compare.reference import Eager
from dspark_compiler.errors import CheckFailedError
from dspark_compiler.runtime.executor import Executor
from tests.bench import tiny
from tests.runtime import toy


@pytest.fixture
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.source(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return tiny.compiled()


def test_an_artifact_runs_before_it_is_in_place(tmp_path: Path) -> None:
    import tvm

    output = tmp_path / "toy.dspark"
    with ArtifactWriter(output) as writer:
        writer.add_params(zip(("table", "other"), toy.tables(), strict=True))
        writer.add_bytes("lib/model.so", toy.library())
        writer.add_file(Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so", "lib/libtvm_runtime.so")
        preview = writer.preview(toy.manifest())
        assert list(greedy(Executor(preview), [1, 2], 5)) == toy.Reference().greedy([1, 2], 5, eos=None)
        assert not output.exists()
    assert not list(tmp_path.iterdir())


def rounded(artifact: Artifact) -> Artifact:
    """The same, passed off as one with 16-bit weights."""
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, dtype="bfloat16"))


def test_a_faithful_artifact_passes(artifact: Artifact, model: PreTrainedModel) -> None:
    steps: list[tuple[int, int]] = []
    report = check(artifact, Eager(model), progress=lambda done, total: steps.append((done, total)))
    assert (report.prompts, report.tokens) == (len(prompt_texts()), 12 * len(prompt_texts()))
    assert report.agreement == 1
    assert report.perplexity_ratio == pytest.approx(1, abs=1e-4)
    assert steps[-1] == (report.prompts, report.prompts)
    assert report.to_json()["agreement"] == 1
    assert check(rounded(artifact), Eager(model)).agreement == 1


def disturb(model: PreTrainedModel, size: float) -> PreTrainedModel:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.lm_head.weight += size * torch.randn_like(model.lm_head.weight)
    return model


def test_one_wrong_token_fails_float32(artifact: Artifact, model: PreTrainedModel) -> None:
    with pytest.raises(CheckFailedError, match=r"prompt \d+ \(\d+ tokens\): token \d+ is \d+, eager's is \d+ \(margin"):
        check(artifact, Eager(disturb(model, 0.05)))


def test_few_wrong_tokens_pass_with_rounded_weights_and_many_fail(artifact: Artifact, model: PreTrainedModel) -> None:
    report = check(rounded(artifact), Eager(disturb(model, 0.004)))
    assert 0.95 <= report.agreement <= 1
    with pytest.raises(CheckFailedError, match=r"with bfloat16 weights .* of the greedy tokens are eager's"):
        check(rounded(artifact), Eager(disturb(model, 0.1)))


def test_a_quantized_cache_has_a_budget_too(artifact: Artifact, model: PreTrainedModel) -> None:
    kv = dataclasses.replace(artifact.manifest.kv, dtype="int8")
    quantized = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, kv=kv))
    assert check(quantized, Eager(disturb(model, 0.004))).agreement >= 0.95
    with pytest.raises(CheckFailedError, match=r"float32 weights and a int8 cache .* compile with --kv-dtype float32,"):
        check(quantized, Eager(disturb(model, 0.1)))


def test_perplexity_has_a_budget(artifact: Artifact, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspark_compiler.compare.budgets.ROUNDED", Budget(0.95, 0.9))
    with pytest.raises(CheckFailedError, match=r"the perplexity is 1\.000 times eager's, at most 0\.9"):
        check(rounded(artifact), Eager(model))
