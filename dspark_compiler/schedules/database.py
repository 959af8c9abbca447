"""What tuning has measured, kept by architecture: JSON lines that several compiles may append to at once.

A folder holds two files an architecture: ``ARCH/templates.jsonl``, measured schedules of our kernel templates (no
microseconds: that schedule does not work), and ``ARCH/searched.jsonl``, outcomes of MetaSchedule's search, each with
the function it is for. Folders are read in order:
the one shipped with the package first, the user's last; of two lines for the same thing the later one holds. A line is
written by one append, so lines of runs at the same time do not mix.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dspark_compiler.errors import InputError
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload
from dspark_compiler.schedules.linear_space import Schedule
from dspark_compiler.schedules.simt.row_schedule import RowSchedule

_FORMAT = 1
_TEMPLATES, _SEARCHED = "templates.jsonl", "searched.jsonl"
_KINDS: dict[str, type[Schedule]] = {
    "linear": LinearSchedule,
    "stream": StreamSchedule,
    "tile": TileSchedule,
    "row": RowSchedule,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def user_folder() -> Path:
    """Where a user's records live: $DSPARK_RECORDS, else dspark-compile/records in the XDG cache folder."""
    named = os.environ.get("DSPARK_RECORDS")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dspark-compile" / "records"


def shipped_folder() -> Path:
    """The records that come with the package."""
    return Path(__file__).parent / "records"


@dataclass(frozen=True)
class SearchRecord:
    """What a search over one function found: the best trace, or none where the rules' schedule was as fast."""

    key: str  # of the function, see search.function_key
    name: str  # of the function, for people
    trace: Any | None  # JSON of a tvm.s_tir trace
    microseconds: float  # of the better of trace and rules
    trials: int  # asked for so far; small spaces have fewer schedules


class Records:
    """The records of one architecture; files are read at first use, new records written at once.

    Args:
        arch: architecture as TargetSpec.arch names it.
        folders: where to read, weakest first; a missing one is empty.
        output: where new records go; read last.

    Raises:
        InputError: a line that is not a record, or a folder that cannot be read or written.
    """

    def __init__(self, arch: str, folders: Sequence[Path], output: Path) -> None:
        self._arch = arch
        self._folders = [*folders, output]
        self._output = output

    @classmethod
    def standard(cls, arch: str) -> "Records":
        """Shipped records, then the user's, which new ones join."""
        return cls(arch, [shipped_folder()], user_folder())

    def measured(self, work: LinearWorkload) -> dict[Schedule, float]:
        """Microseconds of each schedule measured for a workload; infinite for one that does not work."""
        return dict(self._templates.get(work, {}))

    def rows(self, work: LinearWorkload) -> list[LinearWorkload]:
        """The workloads on record that differ from this one in their rows at most, by rows."""
        near = (known for known in self._templates if (known.features, known.depth) == (work.features, work.depth))
        return sorted((known for known in near if replace(known, rows=work.rows) == work), key=lambda known: known.rows)

    def add(self, work: LinearWorkload, schedule: Schedule, microseconds: float) -> None:
        """Keeps one measurement."""
        self._templates.setdefault(work, {})[schedule] = microseconds
        kept = round(microseconds, 3) if math.isfinite(microseconds) else None
        line = {"template": _NAMES[type(schedule)], **asdict(work), "schedule": asdict(schedule), "microseconds": kept}
        self._append(_TEMPLATES, line)

    def searched(self, key: str) -> SearchRecord | None:
        """What the last search over a function found."""
        return self._searched.get(key)

    def add_search(self, record: SearchRecord) -> None:
        """Keeps what a search found."""
        self._searched[record.key] = record
        self._append(_SEARCHED, asdict(record))

    def export(self, folder: Path, works: Sequence[LinearWorkload], keys: Sequence[str]) -> None:
        """Writes the records of some workloads, at any number of rows, and functions below ``folder``."""
        chosen = Records(self._arch, [], folder)
        for known in dict.fromkeys(known for work in works for known in self.rows(work)):
            for schedule, microseconds in self.measured(known).items():
                chosen.add(known, schedule, microseconds)
        for record in filter(None, map(self.searched, keys)):
            chosen.add_search(record)

    @cached_property
    def _templates(self) -> dict[LinearWorkload, dict[Schedule, float]]:
        found: dict[LinearWorkload, dict[Schedule, float]] = {}
        for work, schedule, microseconds in self._read(_TEMPLATES, _parse_template):
            found.setdefault(work, {})[schedule] = microseconds
        return found

    @cached_property
    def _searched(self) -> dict[str, SearchRecord]:
        return {record.key: record for record in self._read(_SEARCHED, _parse_search)}

    def _read(self, name: str, parse: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
        for folder in self._folders:
            path = folder / self._arch / name
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"tuning records {path} cannot be read: {error}; delete the file") from error
            for number, line in enumerate(text.splitlines(), start=1):
                yield from _parse(line, parse, f"{path}:{number}")

    def _append(self, name: str, fields: dict[str, Any]) -> None:
        path = self._output / self._arch / name
        line = json.dumps({"format": _FORMAT, **fields}, separators=(",", ":")) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(
                f"tuning records {path} cannot be written: {error}; name another folder in DSPARK_RECORDS"
            ) from error


def _parse(line: str, parse: Callable[[dict[str, Any]], Any], place: str) -> Iterator[Any]:
    """The record of one line; nothing, and a warning, for one in another version's format."""
    try:
        fields = json.loads(line)
        version = fields.pop("format")
        if version == _FORMAT:
            yield parse(fields)
            return
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{place}: not a tuning record ({error!r}); delete the line") from error
    warnings.warn(f"{place}: record format {version}, this version reads {_FORMAT}; skipped", stacklevel=2)


def _parse_template(fields: dict[str, Any]) -> tuple[LinearWorkload, Schedule, float]:
    schedule, microseconds = _KINDS[fields.pop("template")](**fields.pop("schedule")), fields.pop("microseconds")
    return LinearWorkload(**fields), schedule, math.inf if microseconds is None else float(microseconds)


def _parse_search(fields: dict[str, Any]) -> SearchRecord:
    record = SearchRecord(**fields)
    if not isinstance(record.key, str) or not isinstance(record.trials, int):
        raise TypeError("key or trials of the wrong type")
    return record
