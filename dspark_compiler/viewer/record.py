"""The record of a compile's passes (graph/history.py) as a file of the artifact, and what is counted of it."""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

from dspark_compiler.errors import ArtifactError

RECORD = "passes.json.gz"
FORMAT = 1

Record: TypeAlias = dict[str, Any]

_NOT_RUN = ("input", "param", "state", "output")  # what a graph holds besides operators


def pack(record: Record) -> bytes:
    """The file's content; the same for the same record."""
    return gzip.compress(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(), mtime=0)


def unpack(data: bytes, where: str) -> Record:
    """A file's record.

    Raises:
        ArtifactError: no record, or one of another format; names ``where`` it was.
    """
    try:
        record = json.loads(gzip.decompress(data))
    except (OSError, EOFError, ValueError) as error:
        raise ArtifactError(f"{where}: is no record of passes ({error}); compile again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtifactError(f"{where}: a record of passes in a form this version cannot read; compile again")
    return record


@dataclass(frozen=True)
class Step:
    """A pass, or the capture before them: operators of all entry points after it, rewrites it made and declined."""

    number: int
    name: str
    operators: int
    matched: int
    declined: int


@dataclass(frozen=True)
class Counts:
    """How often an operator stands in an entry point, after each step."""

    operator: str
    after: tuple[int, ...]


def steps(record: Record) -> list[Step]:
    """The steps of a record, in order."""
    counted = [0] * len(record["steps"])
    for entry in record["entries"]:
        for counts in count_operators(record, entry):
            counted = [one + more for one, more in zip(counted, counts.after, strict=True)]
    return [
        Step(number, step["name"], operators, _places(step["matched"]), _places(step["declined"]))
        for number, (step, operators) in enumerate(zip(record["steps"], counted, strict=True))
    ]


def count_operators(record: Record, entry: str) -> list[Counts]:
    """The operators of an entry point by name."""
    found: dict[str, Counter[int]] = {}
    for _, _, forms in record["entries"][entry]["nodes"]:
        for first, last, operator, *_ in forms:
            if operator not in _NOT_RUN:
                found.setdefault(operator, Counter()).update(range(first, last + 1))
    total = len(record["steps"])
    return [Counts(name, tuple(found[name][step] for step in range(total))) for name in sorted(found)]


def _places(remarks: list[dict[str, Any]]) -> int:
    return sum(len(remark["where"]) for remark in remarks)
