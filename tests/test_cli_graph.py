"""``dspark inspect --graph``: of an artifact without torch, of a model without compiling it, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dspark_compiler import cli
from dspark_compiler.viewer.record import RECORD as NAME
from dspark_compiler.viewer.record import pack
from tests.runtime import toy
from tests.tiny_models import TINY
from tests.viewer.test_record import RECORD


def inspect(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["inspect", *map(str, args)], prog_name="dspark")


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write(tmp_path_factory.mktemp("recorded") / "a.dspark", extra={NAME: pack(RECORD)})


def test_an_artifact_s_page_needs_no_torch(recorded: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, tvm=None)\n"
        "from dspark_compiler.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "inspect", str(recorded), "--graph", str(tmp_path / "page.html")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r".*page\.html: 1 passes over 1 entry points, 0\.\d MB\n", result.stdout)
    text = (tmp_path / "page.html").read_text()
    assert "<h1>toy</h1>" in text
    assert "drop_negations" in text
    assert f"<dt>target</dt><dd>cpu {toy.manifest().target.arch}</dd>" in text


def test_a_model_s_page_shows_every_pass(tmp_path: Path) -> None:
    TINY["llama"]().save_pretrained(tmp_path / "tiny")
    result = inspect(tmp_path / "tiny", "--graph", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'page.html'}: ")
    text = (tmp_path / "page.html").read_text()
    for name in ("<h1>tiny</h1>", "0 capture", "insert_kv_cache", "dspark.append_attention", "WeightedNorm"):
        assert name in text


def test_what_is_refused(recorded: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    older = toy.write(tmp_path / "older.dspark")
    refused(inspect(older, "--graph", page), "older.dspark: holds no record of its passes; compile again")
    refused(inspect(recorded, "--graph", page, "--json"), "--json: --graph writes a page; give one of them")
    refused(inspect(recorded, "--graph", tmp_path), "is a folder; name a file, such as")
    refused(inspect(recorded, "--graph", tmp_path / "none" / "page.html"), f"there is no folder {tmp_path / 'none'}")
    refused(inspect(tmp_path / "nothing", "--graph", page), "nothing")
    assert not page.exists()


def test_an_edited_record_is_noticed(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.dspark", extra={NAME: pack(RECORD)})
    data = (path / NAME).read_bytes()
    (path / NAME).write_bytes(b"\0" * len(data))
    refused(inspect(path, "--graph", tmp_path / "page.html"), f"{NAME}: was changed")
    refused(inspect(path, "--graph", tmp_path / "page.html", "--no-verify"), "is no record of passes")
