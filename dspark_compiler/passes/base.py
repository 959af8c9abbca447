"""What a pass is, and the runner that verifies, times and dumps around each one."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dspark_compiler.graph.history import History
from dspark_compiler.graph.printer import operator_name, print_entry
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import Applied
from dspark_compiler.graph.verify import verify


@dataclass(frozen=True)
class PassResult:
    """What a pass leaves: the program, each rewrite it made, and those it declined to make."""

    program: Program
    matched: tuple[Match, ...] = ()
    declined: tuple[Declined, ...] = ()

    @classmethod
    def of_rules(cls, program: Program, results: Iterable[Applied]) -> "PassResult":
        """What applying rules to entry points, one after the other, left."""
        applied = tuple(results)
        matched = (match for result in applied for match in result.matched)
        return cls(program, tuple(matched), tuple(declined for result in applied for declined in result.declined))

    @property
    def modified(self) -> bool:
        """Whether the program is another than before: no pass changes it without a match."""
        return bool(self.matched)


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
    before: Counter[str]
    after: Counter[str]
    matched: tuple[Match, ...]
    declined: tuple[Declined, ...]

    @property
    def modified(self) -> bool:
        """See PassResult.modified."""
        return bool(self.matched)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types; operators only where their number changed, matches and reasons by their number."""
        changed = sorted(name for name in self.before | self.after if self.before[name] != self.after[name])
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "modified": self.modified,
            "operators": {name: [self.before[name], self.after[name]] for name in changed},
            "matched": Counter(match.what for match in self.matched),
            "declined": Counter(declined.reason for declined in self.declined),
        }


def run_passes(
    passes: Sequence[Pass],
    program: Program,
    *,
    dump_dir: Path | None = None,
    on_pass: Callable[[PassReport], None] | None = None,
    history: History | None = None,
) -> tuple[Program, tuple[PassReport, ...]]:
    """Runs passes in order, verifying the program before the first and after each.

    Args:
        passes: what to run.
        program: consumed; use the one returned.
        dump_dir: where to write ``NN-PASS.ENTRY.txt`` after each pass, and ``00-capture.ENTRY.txt`` first.
        on_pass: called with each report as it comes.
        history: given the program before the first pass and after each.

    Raises:
        PassError: a pass could not go on or left an invalid program; names pass, entry point and node.
        OSError: the dump cannot be written.
    """
    verify(program, "before the first pass")
    _dump(program, dump_dir, "00-capture")
    if history is not None:
        history.record("capture", program)
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
        report = PassReport(step.name, seconds, before, after, result.matched, result.declined)
        reports.append(report)
        if on_pass is not None:
            on_pass(report)
        if history is not None:
            history.record(step.name, program, result.matched, result.declined)
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
