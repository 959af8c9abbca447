"""docs/writing-a-pass.md says what is true: its code runs, its names and files exist."""

import re
from pathlib import Path

import pytest

import dspark_compiler.graph.program
import dspark_compiler.graph.rewrite
import dspark_compiler.graph.values
from dspark_compiler.errors import PassError
from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.program import EntryPoint, Program
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.base import Pass
from dspark_compiler.passes.pipeline import default_pipeline
from tests.graph import build

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "writing-a-pass.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)


def test_the_code_runs():
    assert len(BLOCKS) == 2
    names: dict[str, object] = {"__name__": "example"}
    for block in BLOCKS:
        exec(compile(block, "writing-a-pass.md", "exec", dont_inherit=True), names)


@pytest.mark.parametrize(
    "name", ["Rule", "Var", "Op", "Maybe", "OneOf", "emit", "infer", "drop_unused_params", "erase_dead"]
)
def test_names_in_the_text_exist(name):
    assert f"`{name}" in PROSE
    modules = dspark_compiler.graph.rewrite, dspark_compiler.graph.values
    assert any(hasattr(module, name) for module in modules)


def test_other_names_in_the_text_exist():
    for thing in (Program, PassError, print_entry, verify, default_pipeline, build.Builder, build.evaluate):
        assert f"`{thing.__name__}" in PROSE
    assert "`EntryPoint.add_placeholder`" in PROSE
    assert hasattr(EntryPoint, "add_placeholder")
    assert "`changes_numerics: ClassVar[bool] = True`" in PROSE
    assert Pass.changes_numerics is False


def test_files_in_the_text_exist():
    paths = set(re.findall(r"`((?:dspark_compiler|tests)/[\w/]+\.py)`", PROSE))
    made_up = {p for p in paths if "double_negation" in p}
    assert len(paths) >= 7
    assert [p for p in paths - made_up if not (ROOT / p).is_file()] == []
