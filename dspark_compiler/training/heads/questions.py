"""What the target is asked: different prompts, in the ids its chat template makes of them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.runtime.chat import load_chat_template
from dspark_compiler.runtime.tokenizer import Tokenizer
from dspark_compiler.training.heads.report import Report
from dspark_compiler.training.prompts import Prompt, encode_prompts


@dataclass(frozen=True)
class Questions:
    """Different prompts: their ids, how often each was given, and the name of the file that had it first."""

    ids: list[tuple[int, ...]]
    times: list[int]
    files: list[str]

    def digest(self) -> str:
        """Tells them from others."""
        return hashlib.sha256(repr((self.ids, self.times)).encode()).hexdigest()[:16]


class TextFolder:
    """Text files of a folder, as an artifact gives its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_text(self, name: str) -> str | None:
        """The text of a file, None if there is none."""
        file = self.path / name
        return file.read_text(encoding="utf-8") if file.is_file() else None


def encode_questions(
    source: Source, folder: TextFolder, prompts: Sequence[Prompt], limit: int, report: Report
) -> Questions:
    """The prompts that leave room for an answer within ``limit`` tokens; ``folder`` gets the tokenizer's files.

    Raises:
        InputError: no tokenizer, a limit beyond what the model reads, an empty prompt, or fewer than two that fit.
    """
    if "tokenizer.json" not in source.write_tokenizer(folder.path):
        raise InputError(f"{source.path}: has no tokenizer, so it cannot read prompts")
    file = folder.path / "tokenizer.json"
    if limit > source.max_positions:
        raise InputError(f"--max-length {limit}: {source.name} reads {source.max_positions} tokens; give at most that")
    tokenizer = Tokenizer(file.read_text(encoding="utf-8"), str(source.path))
    encoded = encode_prompts(prompts, tokenizer, load_chat_template(folder), source.max_positions)
    fitting = [(tuple(row), prompt.file.name) for row, prompt in zip(encoded, prompts, strict=True) if len(row) < limit]
    if len(fitting) < len(encoded):
        report.note(
            f"{len(encoded) - len(fitting)} of {len(encoded)} prompts fill --max-length {limit} and are left out"
        )
    times = Counter(row for row, _ in fitting)
    if len(times) < 2:
        raise InputError(
            f"--data: {len(times)} prompts leave room for an answer within --max-length {limit}; two are needed, since "
            "one is kept to judge by"
        )
    first = dict(reversed(fitting))
    return Questions(list(times), list(times.values()), [first[row] for row in times])
