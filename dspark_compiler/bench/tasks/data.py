"""Texts from files."""

import json
from collections.abc import Iterable
from pathlib import Path

from dspark_compiler.errors import InputError


def read_all(paths: Iterable[Path], *, by_line: bool = False) -> list[str]:
    """The texts of several files, one after another; see ``read_texts``."""
    return [text for path in paths for text in read_texts(path, by_line=by_line)]


def read_texts(path: Path, *, by_line: bool = False) -> list[str]:
    """The texts of a file: of a ``.jsonl`` file each line's "text", else the whole file, or with ``by_line`` its lines.

    Raises:
        InputError: no such file, not UTF-8, a line that is not as it should be, or no text at all.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--data {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--data {path}: not UTF-8 text (byte {error.start}); convert the file") from None
    if path.suffix == ".jsonl":
        texts = [_text(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    else:
        texts = content.splitlines() if by_line else [content]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"--data {path}: holds no text")
    return texts


def _text(path: Path, number: int, line: str) -> str:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(f"--data {path}: line {number} is not valid JSON ({error})") from None
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise InputError(
            f'--data {path}: line {number} has no "text"; each line must be an object such as {{"text": "…"}}'
        )
    return text
