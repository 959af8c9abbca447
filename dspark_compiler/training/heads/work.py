"""The folder ``HEADS.work`` beside the heads to be: what an interrupted training goes on from."""

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dspark_compiler.errors import InputError
from dspark_compiler.training.heads.anchors import Sequences, join

_FIELDS = ("ids", "prompt", "length", "origin")


class Work:
    """Sequences in parts, the latest checkpoint, and the options of both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoint = path / "checkpoint.pt"

    def claim(self, name: str, options: Mapping[str, Any], remedy: str) -> None:
        """Notes the options of a stage, or sees that the folder was begun with the same.

        Raises:
            InputError: it was begun with others; ``remedy`` says what to remove to begin anew.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / f"{name}.json"
        wanted = json.loads(json.dumps(options))
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            other = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
            if other:
                raise InputError(
                    f"{self.path}: was begun with {other[0]} {found.get(other[0])}, not {wanted.get(other[0])}; give "
                    f"the same options to go on, or remove {remedy} to begin anew"
                )
        else:
            _replace(file, lambda partial: partial.write_text(json.dumps(wanted, indent=1), encoding="utf-8"))

    def options(self, name: str) -> dict[str, Any] | None:
        """The options of a stage that ``claim`` noted, None if it has not begun."""
        file = self.path / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def parts(self) -> int:
        """How many parts of the sequences are written without a gap."""
        return next(number for number in itertools.count() if not self.has_part(number))

    def has_part(self, number: int) -> bool:
        """Whether this part of the sequences is written."""
        return self._part(number).is_file()

    def write_part(self, number: int, part: Sequences) -> None:
        """Keeps a part of the sequences."""
        tensors = {name: getattr(part, name).int().contiguous() for name in _FIELDS}
        _replace(self._part(number), lambda partial: save_file(tensors, partial))

    def sequences(self, parts: int) -> Sequences:
        """All parts as one.

        Raises:
            InputError: a part is damaged.
        """
        read = []
        for number in range(parts):
            try:
                part = load_file(self._part(number))
            except SafetensorError as error:
                raise InputError(f"{self._part(number)}: damaged ({error}); remove it to write it anew") from error
            read.append(Sequences(*(part[name] for name in _FIELDS)))
        return join(read)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint."""
        _replace(self._checkpoint, lambda partial: torch.save(dict(state), partial))

    def checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The latest checkpoint, None if there is none.

        Raises:
            InputError: it is damaged.
        """
        if not self._checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._checkpoint, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise InputError(f"{self._checkpoint}: damaged; remove it to train anew") from error
        return state

    def _part(self, number: int) -> Path:
        return self.path / f"sequences-{number:05d}.safetensors"


def _replace(file: Path, write: Any) -> None:
    """Writes a file whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    write(partial)
    os.replace(partial, file)
