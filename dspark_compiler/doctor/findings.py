"""The form of what doctor finds."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """``OK``: there; ``MISSING``: needed, and ``fix`` brings it; ``ABSENT``: not there, which is fine."""

    OK = "ok"
    MISSING = "missing"
    ABSENT = "absent"


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``fix`` is the command that mends it."""

    section: str
    name: str
    status: Status
    detail: str
    fix: str | None = None
