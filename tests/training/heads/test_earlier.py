"""``dspark heads train --sequences``: what an earlier run wrote teaches again, and never what judges."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from dspark_compiler.commands.heads_train import train_command
from dspark_compiler.models.drafters.checkpoint import read_heads
from dspark_compiler.training.heads import train
from dspark_compiler.training.heads.anchors import Sequences
from tests.training.heads import tiny

SMALL = ("--block-size", "3", "--markov-rank", "4", "--layers", "1", "--batch", "8", "--anchors", "8", "--steps", "1")


def run(model: Path, data: Path, output: Path, *more: str) -> Result:
    lengths = () if "--max-length" in more else ("--max-length", "60")
    args = [str(model), "--data", str(data), "-o", str(output), "--device", "cpu", "--new-tokens", "30"]
    return CliRunner().invoke(train_command, [*args, *lengths, *SMALL, *more])


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The prompts and the work folder of a run."""
    folder = tmp_path_factory.mktemp("earlier")
    prompts = tiny.write_prompts(folder / "p.jsonl", 64)
    assert run(model, prompts, folder / "h", "--samples", "2").exit_code == 0
    return prompts, folder / "h.work"


def test_earlier_answers_teach_and_none_of_what_judges(
    model: Path, first: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompts with another seed keep others to judge: earlier answers to these are left out."""
    prompts, work = first
    seen: dict[str, Sequences] = {}

    class Spy(train.Fit):
        def __init__(self, drafter: object, target: object, sequences: Sequences, options: object) -> None:
            seen["teaching"] = sequences
            super().__init__(drafter, target, sequences, options)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "Fit", Spy)
    result = run(model, prompts, tmp_path / "h", "--seed", "7", "--sequences", str(work))
    assert result.exit_code == 0, result.output
    own = [load_file(file) for file in sorted((tmp_path / "h.work").glob("sequences-*"))]
    old = [load_file(file) for file in sorted(work.glob("sequences-*"))]
    asked = {
        tuple(row[:n]) for part in own for row, n in zip(part["ids"].tolist(), part["prompt"].tolist(), strict=True)
    }
    kept = train.keep_prompts(len(asked), 7)
    judging = {n for n, judges in enumerate(kept.tolist()) if judges}
    expected = sum(
        int(origin not in judging and length - prompt >= 2)
        for part in [*own, *old]
        for origin, length, prompt in zip(
            *(part[name].tolist() for name in ("origin", "length", "prompt")), strict=True
        )
    )
    teaching = seen["teaching"]
    assert len(teaching) == expected == read_heads(tmp_path / "h").training["sequences"]
    assert int((teaching.origin == -1).sum()) > len(teaching) // 2
    rows = zip(teaching.ids.tolist(), teaching.prompt.tolist(), strict=True)
    taught = {tuple(row[:n]) for row, n in rows}
    assert len(taught) == len(asked) - len(judging)
    assert torch.equal(teaching.length > teaching.prompt, torch.ones(len(teaching), dtype=torch.bool))


def test_to_go_on_takes_the_same_sequences(model: Path, first: tuple[Path, Path], tmp_path: Path) -> None:
    prompts, work = first
    assert run(model, prompts, tmp_path / "h", "--sequences", str(work)).exit_code == 0
    result = run(model, prompts, tmp_path / "h")
    assert result.exit_code == 2
    assert f"was begun with sequences ['{work}'], not []" in result.stderr


def test_sequences_that_cannot_teach(model: Path, first: tuple[Path, Path], tmp_path: Path) -> None:
    """A folder without sequences, another model's, longer ones: one line each, and nothing is written."""
    prompts, work = first
    nothing = run(model, prompts, tmp_path / "h", "--sequences", str(tmp_path / "none"))
    other = tmp_path / "other.work"
    other.mkdir()
    for file in work.glob("sequences-*"):
        (other / file.name).write_bytes(file.read_bytes())
    options = json.loads((work / "generation.json").read_text(encoding="utf-8"))
    (other / "generation.json").write_text(json.dumps(options | {"model": "another"}), encoding="utf-8")
    others = run(model, prompts, tmp_path / "h", "--sequences", str(other))
    longer = run(model, prompts, tmp_path / "h", "--sequences", str(work), "--max-length", "50")
    assert [result.exit_code for result in (nothing, others, longer)] == [2, 2, 2]
    assert f"--sequences {tmp_path / 'none'}: holds no sequences; give the folder HEADS.work" in nothing.stderr
    assert f"--sequences {other}: was written by another, not by tiny" in others.stderr
    assert f"--sequences {work}: up to 60 tokens long; give --max-length 60" in longer.stderr
    assert not (tmp_path / "h.work").exists()
