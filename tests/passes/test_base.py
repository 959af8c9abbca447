"""The runner verifies, reports and dumps around each pass."""

from collections import Counter
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch

from dspark_compiler.errors import PassError
from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.passes.base import Pass, PassResult, run_passes
from dspark_compiler.passes.eliminate_dead_code import EliminateDeadCode
from tests.graph.build import Builder, aten


@dataclass(frozen=True)
class _DropNegations(Pass):
    name: ClassVar[str] = "drop_negations"

    def apply(self, program: Program) -> PassResult:
        for entry in program.entries.values():
            for node in entry.graph.graph.nodes:
                if node.target is aten.neg.default:
                    node.replace_all_uses_with(node.args[0])
        return PassResult(program, (Match("neg", "dropped"),), (Declined("tanh", "for the test", "prefill_4"),))


@dataclass(frozen=True)
class _Spoil(Pass):
    name: ClassVar[str] = "spoil"

    def apply(self, program: Program) -> PassResult:
        for entry in program.entries.values():
            next(n for n in entry.graph.graph.nodes if n.target is aten.tanh.default).meta["val"] = torch.empty(3)
        return PassResult(program, (Match("tanh", "spoiled"),))


def _program() -> Program:
    b = Builder()
    return b.done(b.call(aten.tanh.default, b.call(aten.neg.default, b.x)))


def test_reports_say_what_each_pass_did():
    seen = []
    program, reports = run_passes((_DropNegations(), EliminateDeadCode()), _program(), on_pass=seen.append)
    assert tuple(seen) == reports
    first, second = reports
    assert (first.name, first.modified) == ("drop_negations", True)
    assert [str(found) for found in (*first.matched, *first.declined)] == [
        "neg: dropped",
        "prefill_4: tanh: for the test",
    ]
    assert (first.to_json()["matched"], first.to_json()["declined"]) == ({"dropped": 1}, {"for the test": 1})
    assert first.before == first.after == Counter({"aten.embedding": 1, "aten.neg": 1, "aten.tanh": 1})
    assert (second.name, second.modified) == ("eliminate_dead_code", True)
    assert second.before - second.after == Counter({"aten.neg": 1})
    assert all(report.seconds >= 0 for report in reports)
    assert "neg" not in program.entries["prefill_4"].graph.code


def test_a_pass_that_leaves_an_invalid_program_is_named():
    with pytest.raises(PassError, match=r"^after spoil: prefill_4: tanh_default: recorded as float32\[3\]"):
        run_passes((EliminateDeadCode(), _Spoil()), _program())


def test_a_program_that_is_invalid_at_the_start_is_no_pass_s_fault():
    program = _program()
    del program.params["table"]
    with pytest.raises(PassError, match=r"^before the first pass: prefill_4: table: no param table$"):
        run_passes((EliminateDeadCode(),), program)


def test_dump(tmp_path):
    folder = tmp_path / "new" / "ir"
    text = print_entry(_program().entries["prefill_4"])
    program, _ = run_passes((_DropNegations(), EliminateDeadCode()), _program(), dump_dir=folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "00-capture.prefill_4.txt",
        "01-drop_negations.prefill_4.txt",
        "02-eliminate_dead_code.prefill_4.txt",
    ]
    assert (folder / "00-capture.prefill_4.txt").read_text() == text
    assert (folder / "02-eliminate_dead_code.prefill_4.txt").read_text() == print_entry(program.entries["prefill_4"])


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_passes((EliminateDeadCode(),), _program())
    assert not list(tmp_path.iterdir())


def test_passes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        EliminateDeadCode().option = 1  # type: ignore[attr-defined]
