"""``dspark heads prompts``: different prompts that the model brought to an end, none of them excluded."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dspark_compiler.commands.heads_prompts import prompts_command
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.chat import ChatTemplate
from dspark_compiler.training.heads import own_prompts
from dspark_compiler.training.heads.own_prompts import opening
from dspark_compiler.training.overlap import split_words
from dspark_compiler.training.prompts import read_prompts
from tests.runtime import toy

COUNT = 8


@pytest.fixture(scope="module")
def chat_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    path = shutil.copytree(model, tmp_path_factory.mktemp("chat") / "tiny")
    config = {"chat_template": toy.CHAT_TEMPLATE, "bos_token": "<s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def run(model: Path, output: Path, *more: str, count: int = COUNT) -> Result:
    args = [str(model), "--count", str(count), "--new-tokens", "40", "-o", str(output), "--device", "cpu", *more]
    return CliRunner().invoke(prompts_command, args)


def texts(output: Path) -> list[str]:
    return [str(prompt.messages[0]["content"]) for prompt in read_prompts([output])]


def test_different_prompts_that_training_reads(chat_model: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    result = run(chat_model, first)
    assert (result.exit_code, result.stdout) == (0, f"{first}: {COUNT} prompts\n")
    assert run(chat_model, again).exit_code == run(chat_model, other, "--seed", "1").exit_code == 0
    assert first.read_bytes() == again.read_bytes()
    assert len({split_words(text) for text in texts(first)}) == COUNT
    assert not set(texts(first)) & set(texts(other))
    assert sorted(tmp_path.iterdir()) == [first, again, other]


def test_what_is_excluded_is_left_out(chat_model: Path, tmp_path: Path) -> None:
    """The others stay, and as many more are written."""
    first, second, third = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert run(chat_model, first).exit_code == 0
    known = texts(first)
    second.write_text(json.dumps({"text": known[3].upper()}), encoding="utf-8")
    assert run(chat_model, third, "--exclude", str(second)).exit_code == 0
    written = texts(third)
    assert len(written) == COUNT
    assert known[3] not in written
    assert sum(text in written for text in known) >= COUNT // 2


def test_unfinished_prompts_are_left_out(chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text is a whole row up to the token that ends it."""
    write, ended = own_prompts.Writer.write, set()

    def watched(self: own_prompts.Writer, *args: object) -> object:
        written = write(self, *args)
        for row, begin, end in zip(written.ids.tolist(), written.prompt.tolist(), written.length.tolist(), strict=True):
            if row[end - 1] == toy.EOS:
                ended.add(toy.tokenizer().decode(row[begin : end - 1]).strip())
        return written

    monkeypatch.setattr(own_prompts.Writer, "write", watched)
    assert run(chat_model, tmp_path / "a.jsonl").exit_code == 0
    assert set(texts(tmp_path / "a.jsonl")) <= ended


def test_where_the_users_words_begin() -> None:
    assert opening(ChatTemplate(toy.CHAT_TEMPLATE, {"bos_token": "<s>"})) == "<s><|user|>"
    with pytest.raises(InputError, match="does not show the user's words as they are"):
        opening(ChatTemplate("{{ messages[0].content | upper }}", {}))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--count", "0"), "--count 0: must be at least 1"),
        (("--new-tokens", "0"), "--new-tokens 0: must be at least 1"),
        (
            ("--new-tokens", "160"),
            "--new-tokens 160: with the chat template 162 tokens, and tiny reads 160; give fewer",
        ),
        (("--new-tokens", "1"), "after 0 prompts hardly any new ones come to an end within --new-tokens 1"),
        (("--temperature", "0"), "--temperature 0.0: must be above 0"),
        (("--seed", "-1"), "--seed -1: must be at least 0"),
        (("--device", "tpu"), "--device tpu: not here; give cpu"),
        (("--exclude", "/none.jsonl"), "--exclude /none.jsonl: No such file or directory"),
        (("-o", "/none/p.jsonl"), "--output /none/p.jsonl: its folder does not exist; make it first"),
        (("-o", "/"), "--output /: is a folder; give the name of a file"),
    ],
)
def test_refusals(chat_model: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    result = run(chat_model, tmp_path / "p.jsonl", *more)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_chat(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "p.jsonl")
    assert result.exit_code == 2
    assert "has no chat template, so it does not know how users speak; give an instruct model" in result.stderr
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    result = run(bare, tmp_path / "p.jsonl")
    assert result.exit_code == 2
    assert "has no tokenizer, so it cannot write prompts" in result.stderr
