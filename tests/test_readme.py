"""What the README shows works as it stands there."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from dspark_compiler import cli
from tests.tiny_models import TINY, VOCAB

_README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    TINY["llama"]().save_pretrained(source)
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "Once": 1} | {f"w{i}": i for i in range(2, VOCAB)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    monkeypatch.chdir(tmp_path)
    (code,) = (text for language, text in _BLOCKS if language == "python")
    exec(code.replace("path/or/hub-id", str(source)), {})
    assert capsys.readouterr().out.strip()


def test_command_lines_have_options_that_exist() -> None:
    commands = {"dspark-compile": cli.compile_main, "dspark": cli.main}
    lines = [line for language, text in _BLOCKS if not language for line in text.splitlines() if "/dspark" in line]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        command: click.Command = commands[Path(program).name]
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", _README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_layout_names_what_is_there() -> None:
    paths = re.findall(r"`(dspark_compiler/[\w/.]+|benchmarks/|docs/)`", _README)
    assert len(paths) > 8
    for path in paths:
        assert (Path(__file__).parents[1] / path).exists(), path
