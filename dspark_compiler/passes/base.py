"""What a pass is, and the runner that verifies, times and dumps around each one."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dspark_compiler.graph.printer import operator_name, print_entry
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.verify import verify


@dataclass(frozen=True)
class PassResult:
    """What a pass leaves: the program, whether it is another than before, and remarks.

    A remark on a rewrite that did not apply reads ``ENTRY: NODE: reason``.
    """

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """A named rewrite of a Program: valid in, valid out; fields are its options.

    The program given may be changed in place; weights are too big to copy.
    """

    name: ClassVar[str]
    changes_numerics: ClassVar[bool] = False  # True: exact arithmetic would give other results (pruning, quantizing)

    @abstractmethod
    def apply(self, program: Program) -> PassResult:
        """Rewrites the program.

        Raises:
            PassError: the rewrite must be made and cannot be; names pass, entry point and node.
        """


@dataclass(frozen=True)
class PassReport:
    """What one pass did and cost: ``before`` and ``after`` count operators by name, over all entry points."""

    name: str
    seconds: float  # of the pass alone, without verification
    modified: bool
    before: Counter[str]
    after: Counter[str]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types; operators only where their number changed."""
        changed = sorted(name for name in self.before | self.after if self.before[name] != self.after[name])
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "modified": self.modified,
            "operators": {name: [self.before[name], self.after[name]] for name in changed},
            "notes": list(self.notes),
        }


def run_passes(
    passes: Sequence[Pass],
    program: Program,
    *,
    dump_dir: Path | None = None,
    on_pass: Callable[[PassReport], None] | None = None,
) -> tuple[Program, tuple[PassReport, ...]]:
    """Runs passes in order, verifying the program before the first and after each.

    Args:
        passes: what to run.
        program: consumed; use the one returned.
        dump_dir: where to write ``NN-PASS.ENTRY.txt`` after each pass, and ``00-capture.ENTRY.txt`` first.
        on_pass: called with each report as it comes.

    Raises:
        PassError: a pass could not go on or left an invalid program; names pass, entry point and node.
        OSError: the dump cannot be written.
    """
    verify(program, "before the first pass")
    _dump(program, dump_dir, "00-capture")
    reports = []
    after = _operators(program)
    for number, step in enumerate(passes, start=1):
        before, start = after, time.perf_counter()
        result = step.apply(program)
        seconds = time.perf_counter() - start
        program = result.program
        verify(program, f"after {step.name}")
        _dump(program, dump_dir, f"{number:02d}-{step.name}")
        after = _operators(program)
        report = PassReport(step.name, seconds, result.modified, before, after, result.notes)
        reports.append(report)
        if on_pass is not None:
            on_pass(report)
    for entry in program.entries.values():
        entry.graph.recompile()  # once: only who calls the module needs its code
    return program, tuple(reports)


def _operators(program: Program) -> Counter[str]:
    nodes = (node for entry in program.entries.values() for node in entry.graph.graph.nodes)
    return Counter(operator_name(node) for node in nodes if node.op == "call_function")


def _dump(program: Program, folder: Path | None, stem: str) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for entry in program.entries.values():
        (folder / f"{stem}.{entry.name}.txt").write_text(print_entry(entry), encoding="utf-8")
