"""dspark heads calibrate and eval, on a tiny model compiled with a drafter of random weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from dspark_compiler.artifact import Artifact
from dspark_compiler.config import CompileConfig
from dspark_compiler.driver import compile_model
from dspark_compiler.frontend.source import open_source
from dspark_compiler.models.drafters.checkpoint import read_heads, write_heads
from dspark_compiler.models.drafters.heads import Heads
from dspark_compiler.training import calibrate_heads
from dspark_compiler.training.importing import import_heads
from dspark_compiler.training.rollouts import RolloutOptions, answer, draw_prompts
from tests.models.drafters import published
from tests.runtime import toy
from tests.test_cli import dspark, refused

QUESTIONS = [f"What is {i}?" for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a byte-level tokenizer, heads for it, and prompts."""
    path = tmp_path_factory.mktemp("heads")
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = {name: published.QWEN3[name] for name in names}
    settings = Qwen3Config(
        vocab_size=toy.V, num_hidden_layers=2, max_position_embeddings=96, eos_token_id=None, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen3ForCausalLM(settings)
    model.save_pretrained(path / "model")
    (path / "model" / "tokenizer.json").write_text(toy.tokenizer().to_str(), encoding="utf-8")
    config = published.QWEN3 | {"vocab_size": toy.V, "mask_token_id": toy.V - 1}
    published.write(path / "published", config, model)
    write_heads(path / "heads", import_heads(path / "published", open_source(str(path / "model"))))
    (path / "prompts.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    return path


@pytest.fixture(scope="module")
def calibrated(folder: Path) -> tuple[Result, Path]:
    """What calibrating printed, and the artifact it made for that."""

    def keep(model: str, config: CompileConfig, **options: Any) -> Artifact:
        made = compile_model(model, config, **options)
        shutil.copytree(made.path, folder / "a.dspark")
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_heads, "compile_model", keep)
        data = str(folder / "prompts.jsonl")
        return dspark(*calibrate(folder, data, "--new-tokens", "75")), folder / "a.dspark"


def calibrate(folder: Path, *options: str) -> list[str]:
    return ["heads", "calibrate", str(folder / "model"), str(folder / "heads"), "--target", "cpu", "--data", *options]


def test_calibrate_writes_beside_the_weights(folder: Path, calibrated: tuple[Result, Path]) -> None:
    result, artifact = calibrated
    assert result.exit_code == 0, result.stderr
    assert "AUC:" in result.stdout
    heads = read_heads(folder / "heads")
    assert heads.calibration is not None
    assert len(heads.calibration.ece_before) == len(heads.calibration.auc) == published.QWEN3["block_size"]
    published_weights = load_file(folder / "published" / "model.safetensors")
    assert all(torch.equal(t.bfloat16(), published_weights[n]) for n, t in heads.drafter.state_dict().items())
    manifest = Artifact.open(artifact).manifest
    assert manifest.heads is not None
    assert (manifest.heads.block_size, manifest.heads.confidence) == (4, True)
    assert "verify_5" in manifest.entry_points


def test_eval_of_an_artifact(folder: Path, tmp_path: Path, calibrated: tuple[Result, Path]) -> None:
    args = ["heads", "eval", str(calibrated[1]), "--data", str(folder / "prompts.jsonl")]
    args += ["--prompts", "3", "--new-tokens", "20", "--json", str(tmp_path / "found.json")]
    result = dspark(*args)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["prompts"], found["block_size"], found["heads"], found["data"]) == (3, 4, "dspark", ["prompts.jsonl"])
    assert found["tau"] == pytest.approx((found["tokens"] - 3) / found["rounds"])
    assert len(found["acceptance"]) == len(found["ece"]) == len(found["auc"]) == 4
    assert "tokens a round: " in result.stdout
    dspark(*args[:-1], str(tmp_path / "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == found
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"text": "x" * 200}) + "\n")
    refused(dspark(*args[:4], str(long)), "long.jsonl: line 1: a prompt of 201 tokens, and the model reads 96")


def test_answers_are_the_same_one_by_one(folder: Path, calibrated: tuple[Result, Path]) -> None:
    artifact = Artifact.open(calibrated[1])
    assert artifact.manifest.max_batch > 1
    options = RolloutOptions(prompts=3, new_tokens=12, temperature=1.0, seed=5)
    prompts = draw_prompts([folder / "prompts.jsonl"], options)
    together = answer(artifact, prompts, options, lambda *_: None)
    alone = [
        answer(artifact, [prompt], replace(options, seed=5 + index), lambda *_: None)
        for index, prompt in enumerate(prompts)
    ]
    assert [c.tokens for c in together.completions] == [a.completions[0].tokens for a in alone]
    for index, one in enumerate(alone):
        mine = together.rollouts.select(together.rollouts.origin == index)
        assert mine.accepted.tolist() == one.rollouts.accepted.tolist()
        assert mine.drafted.tolist() == one.rollouts.drafted.tolist()
        np.testing.assert_allclose(mine.logits, one.rollouts.logits, rtol=1e-4, atol=1e-5)


def test_a_prompt_is_answered_as_often_as_asked(folder: Path, calibrated: tuple[Result, Path]) -> None:
    """Each time otherwise, and all of it counts as one prompt's."""
    artifact = Artifact.open(calibrated[1])
    options = RolloutOptions(prompts=2, new_tokens=12, temperature=1.0, seed=5, samples=5)
    found = answer(artifact, draw_prompts([folder / "prompts.jsonl"], options), options, lambda *_: None)
    asked = [done.prompt_tokens for done in found.completions]
    assert asked[0] == asked[4] != asked[5] == asked[9]
    assert len({done.tokens for done in found.completions}) > 5
    rounds = np.bincount(found.rollouts.origin)
    assert len(rounds) == 2
    for number, most in enumerate(
        max(done.rounds for done in found.completions[first : first + 5]) for first in (0, 5)
    ):
        assert rounds[number] > most, "of more than one answer"


def test_eval_of_an_artifact_without_heads(tmp_path: Path, folder: Path) -> None:
    plain = str(toy.write(tmp_path / "toy.dspark"))
    data = ["--data", str(folder / "prompts.jsonl")]
    refused(dspark("heads", "eval", plain, *data), "has no decode heads; compile the model with --heads")
    refused(dspark("heads", "eval", plain, *data, "--prompts", "0"), "--prompts 0: must be at least 1")
    refused(dspark("heads", "eval", plain, *data, "--samples", "0"), "--samples 0: must be at least 1")
    refused(dspark("heads", "eval", plain, *data, "--json", "/none/a.json"), "--json /none/a.json: no folder /none")


def test_calibrate_refuses(folder: Path, tmp_path: Path) -> None:
    data = str(folder / "prompts.jsonl")
    refused(dspark(*calibrate(folder, str(tmp_path / "none.jsonl"))), "none.jsonl: No such file")
    refused(dspark(*calibrate(folder, data, "--target", "tpu")), "--target tpu: not one of cpu, ")
    heads = read_heads(folder / "heads")
    config = replace(heads.drafter.config, enable_confidence_head=False, confidence_head_with_markov=False)
    silent = Heads(type(heads.drafter)(config), heads.target)
    write_heads(tmp_path / "silent", silent)
    args = ["heads", "calibrate", str(folder / "model"), str(tmp_path / "silent"), "--target", "cpu", "--data", data]
    refused(dspark(*args), "these heads give no confidences, so there is nothing to calibrate")
    write_heads(tmp_path / "other", replace(heads, target=replace(heads.target, tokenizer_sha256="ab" * 32)))
    refused(dspark(*args[:3], str(tmp_path / "other"), *args[4:]), "made for model (tokenizer: abababababab)")
