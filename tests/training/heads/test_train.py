"""``dspark heads train`` from prompts to HEADS: it learns, it goes on after an interrupt, it refuses clearly."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from dspark_compiler.commands.heads_train import train_command
from dspark_compiler.models.drafters.checkpoint import read_heads
from dspark_compiler.training.heads import fit, train
from tests.training.heads import tiny

LENGTHS = ("--new-tokens", "40", "--max-length", "80")
SMALL = ("--block-size", "3", "--markov-rank", "4", "--layers", "1", "--batch", "8", "--anchors", "8", "--lr", "3e-3")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_prompts(tmp_path_factory.mktemp("prompts") / "p.jsonl", 64)


def run(model: Path, prompts: Path, output: Path, *more: str) -> Result:
    args = [str(model), "--data", str(prompts), "-o", str(output), "--device", "cpu", *LENGTHS, *SMALL, *more]
    return CliRunner().invoke(train_command, args)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return read_heads(output).drafter.state_dict()


def test_heads_learn(model: Path, prompts: Path, tmp_path: Path) -> None:
    """On prompts kept from training tau rises, and with the sequential head it is higher than without."""
    before, after = tmp_path / "before", tmp_path / "after"
    assert run(model, prompts, before, "--steps", "1", "--samples", "2").exit_code == 0
    result = run(model, prompts, after, "--steps", "250", "--samples", "2", "--taps", "0,2")
    assert result.exit_code == 0, result.output
    first, last = read_heads(before).training["held_out"], read_heads(after).training["held_out"]
    taught, bare = last["with_sequential_head"], last["without_sequential_head"]
    assert taught["tau"] > first["with_sequential_head"]["tau"] + 0.2
    assert taught["loss"] < first["with_sequential_head"]["loss"] - 0.2
    assert taught["tau"] > bare["tau"]
    assert f"with sequential head: loss {taught['loss']:.3f}, tau {taught['tau']:.2f}, acceptance 0." in result.stdout
    heads = read_heads(after)
    assert heads.drafter.config.target_layer_ids == (0, 2)
    assert heads.drafter.config.context_window == 80, "no more than it was trained on"
    assert heads.target.name == "tiny"
    facts = heads.training
    assert facts["steps"] == 250
    assert facts["data"] == ["p.jsonl"]
    assert facts["options"]["fit"]["lr"] == 3e-3
    assert facts["options"]["generation"]["samples"] == 2


def test_a_prompt_given_twice_is_answered_twice(model: Path, prompts: Path, tmp_path: Path) -> None:
    """It stays one prompt: its answers teach, all of them, or judge."""
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "alone"}\n' * 2 + '{"prompt": "ab0"}', encoding="utf-8")
    more = ("--data", str(other), "--data", str(other), "--steps", "1", "--samples", "2")
    result = run(model, prompts, tmp_path / "h", *more)
    assert result.exit_code == 0, result.output
    parts = [load_file(file) for file in sorted((tmp_path / "h.work").glob("sequences-*"))]
    origin = torch.cat([part["origin"] for part in parts]).tolist()
    # "ab0" is the first of the 64 as well, "alone" is the 65th.
    assert [origin.count(number) for number in (0, 1, 64)] == [2 * 3, 2, 2 * 4]
    assert len(origin) == 2 * (64 + 2 + 4)
    tau = read_heads(tmp_path / "h").training["held_out_tau"]
    assert set(tau) <= {"p.jsonl", "other.jsonl"}
    assert "p.jsonl" in tau
    for name, value in tau.items():
        assert value >= 1
        assert len(tau) == 1 or f"prompts of {name}: tau {value:.2f}" in result.stdout


def test_training_goes_on_from_other_heads(model: Path, prompts: Path, tmp_path: Path) -> None:
    first, more = tmp_path / "first", tmp_path / "more"
    assert run(model, prompts, first, "--steps", "60").exit_code == 0
    assert run(model, prompts, more, "--steps", "1", "--lr", "1e-9", "--init", str(first)).exit_code == 0
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(more)[name], tensor, rtol=1e-2, atol=1e-6)
    result = run(model, prompts, tmp_path / "other", "--steps", "1", "--markov-rank", "2", "--init", str(first))
    assert result.exit_code == 2
    assert "these heads have markov_rank 4, not 2; ask for the same" in result.output


def test_interrupted_training_ends_alike(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = ("--steps", "24", "--head-type", "gated")
    assert run(model, prompts, whole, *options).exit_code == 0
    step = fit.Fit._take_step

    def take_step(self: fit.Fit, *args: object) -> int:
        if self.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(fit.Fit, "_take_step", take_step)
        assert run(model, prompts, resumed, *options).exit_code == 130
    assert not resumed.exists()
    assert torch.load(tmp_path / "resumed.work" / "checkpoint.pt")["step"] == 14
    assert run(model, prompts, resumed, *options).exit_code == 0
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], tensor, rtol=1e-5, atol=1e-6)
    ends = [read_heads(output).training["held_out"]["with_sequential_head"] for output in (whole, resumed)]
    assert ends[1] == pytest.approx(ends[0] | {"acceptance": pytest.approx(ends[0]["acceptance"])})


def test_interrupted_writing_goes_on(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that were written stay; those that were not are the same as without the interrupt."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(model, prompts, whole, "--steps", "1").exit_code == 0
    written = train.Work.write_part
    with monkeypatch.context() as patch:

        def write_part(self: train.Work, number: int, part: object) -> None:
            written(self, number, part)
            os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(train.Work, "write_part", write_part)
        assert run(model, prompts, resumed, "--steps", "1").exit_code == 130
    parts = [file.name for file in (tmp_path / "resumed.work").glob("sequences-*")]
    assert parts == ["sequences-00000.safetensors"]
    assert run(model, prompts, resumed, "--steps", "1").exit_code == 0
    for file in (tmp_path / "whole.work").glob("sequences-*"):
        assert file.read_bytes() == (tmp_path / "resumed.work" / file.name).read_bytes()


def test_minutes_instead_of_steps(model: Path, prompts: Path, tmp_path: Path) -> None:
    assert run(model, prompts, tmp_path / "h", "--minutes", "0.02", "--steps", "1").exit_code == 0
    assert read_heads(tmp_path / "h").training["steps"] > 1
    assert read_heads(tmp_path / "h").training["seconds"] >= 1.2


def test_dflash_has_no_sequential_head(model: Path, prompts: Path, tmp_path: Path) -> None:
    assert run(model, prompts, tmp_path / "h", "--steps", "2", "--markov-rank", "0", "--no-confidence").exit_code == 0
    heads = read_heads(tmp_path / "h")
    assert heads.drafter.markov_head is None
    assert list(heads.training["held_out"]) == ["with_sequential_head"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--type", "medusa"), "--type medusa: only dspark heads can be trained"),
        (("--head-type", "lstm"), "--head-type lstm: unknown; give one of vanilla, gated, rnn"),
        (("--taps", "0,3"), "--taps 0,3: give different layers from -1 (the embedding) to 2, ascending"),
        (("--taps", "2,1"), "--taps 2,1: give different layers"),
        (("--taps", "a"), "--taps a: give numbers of layers with commas between them"),
        (("--steps", "0"), "--steps 0: must be at least 1"),
        (("--samples", "0"), "--samples 0: must be at least 1"),
        (("--minutes", "0"), "--minutes 0.0: must be above 0"),
        (("--temperature", "nan"), "--temperature nan: must be above 0"),
        (("--lr", "-1"), "--lr -1.0: must be above 0"),
        (("--seed", "-1"), "--seed -1: must be at least 0"),
        (("--markov-rank", "-1"), "--markov-rank -1: must be at least 0"),
        (("--checkpoint-every", "-1"), "--checkpoint-every -1.0: must be at least 0"),
        (("--max-length", "161"), "--max-length 161: tiny reads 160 tokens; give at most that"),
        (("--max-length", "4"), "--data: 0 prompts leave room for an answer within --max-length 4"),
        (("--device", "tpu"), "--device tpu: not here; give cpu"),
        (("--data", "/none.jsonl"), "--data /none.jsonl: No such file or directory"),
        (("-o", "/none/h"), "--output /none/h: its folder does not exist; make it first"),
    ],
)
def test_refusals(model: Path, prompts: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    result = run(model, prompts, tmp_path / "h", *more)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer(model: Path, prompts: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    result = run(bare, prompts, tmp_path / "h")
    assert result.exit_code == 2
    assert "has no tokenizer, so it cannot read prompts" in result.stderr


def test_other_options_in_the_same_work_folder(model: Path, prompts: Path, tmp_path: Path) -> None:
    """New training options keep the sequences, if the old checkpoint is removed; new sequences need a new folder."""
    out, work = tmp_path / "h", tmp_path / "h.work"
    assert run(model, prompts, out, "--steps", "2").exit_code == 0
    result = run(model, prompts, out, "--steps", "3")
    assert result.exit_code == 2
    assert f"{work}: was begun with steps 2, not 3" in result.stderr
    assert f"or remove {work}/training.json and checkpoint.pt to begin anew" in result.stderr
    (work / "training.json").unlink()
    (work / "checkpoint.pt").unlink()
    assert run(model, prompts, out, "--steps", "3").exit_code == 0
    result = run(model, prompts, out, "--steps", "3", "--temperature", "0.5")
    assert result.exit_code == 2
    assert f"{work}: was begun with temperature 1.0, not 0.5" in result.stderr


@pytest.mark.parametrize("name", ["checkpoint.pt", "sequences-00000.safetensors"])
def test_a_damaged_work_folder(model: Path, prompts: Path, tmp_path: Path, name: str) -> None:
    out, file = tmp_path / "h", tmp_path / "h.work" / name
    assert run(model, prompts, out, "--steps", "2").exit_code == 0
    file.write_bytes(file.read_bytes()[:1000])
    result = run(model, prompts, out, "--steps", "2")
    assert result.exit_code == 2
    assert f"{file}: damaged" in result.stderr


def test_defaults_are_the_options_of_the_command(model: Path) -> None:
    """What the command gives is what the options say by themselves."""
    options = train.TrainingOptions()
    given = {parameter.name: parameter.default for parameter in train_command.params}
    flat = {key: value for group in options.to_json().values() for key, value in group.items()}
    assert {name: given[name] for name in flat if flat[name] is not None} == {
        name: value for name, value in flat.items() if value is not None
    }
    json.dumps(options.to_json())
