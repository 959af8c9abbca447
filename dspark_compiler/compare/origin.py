"""What an artifact knows of its origin: the source model, the options it was compiled with and the tokenizer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dspark_compiler.artifact import Artifact
from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.tokenizer import Tokenizer


def recorded_source(artifact: Artifact) -> str | None:
    """What the compile was given as MODEL, as report.json says; None if it does not.

    Raises:
        ArtifactError: report.json is damaged.
    """
    source = _report(artifact).get("source")
    return source if isinstance(source, str) else None


def recorded_config(artifact: Artifact) -> CompileConfig:
    """The options of the compile, as report.json has them; paths such as the output's are given as they were.

    Raises:
        ArtifactError: report.json is damaged.
        InputError: it has no options, or those of another version.
    """
    options = _report(artifact).get("options")
    fields = {field.name: field.type for field in dataclasses.fields(CompileConfig)}
    if not isinstance(options, dict) or not options.keys() <= fields.keys():
        raise InputError(
            f"{artifact.path}: does not say with which options of this version it was compiled; compile it again"
        )
    values: dict[str, Any] = {}
    for name, value in options.items():
        is_path = value is not None and "Path" in str(fields[name])
        values[name] = Path(value) if is_path else tuple(value) if isinstance(value, list) else value
    return CompileConfig(**values)


def _report(artifact: Artifact) -> dict[str, Any]:
    text = artifact.read_text("report.json")
    if text is None:
        return {}
    try:
        report = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path / 'report.json'}: not valid JSON ({error}); compile again") from None
    return report if isinstance(report, dict) else {}


def source_of(artifact: Artifact, model: str | None) -> str:
    """The source model: ``model`` if given, else what the artifact was compiled from.

    Raises:
        InputError: neither is known.
    """
    source = model or recorded_source(artifact)
    if source is None:
        raise InputError(f"{artifact.path}: does not say which model it was compiled from; give it with --model")
    return source


def tokenizer_of(artifact: Artifact) -> Tokenizer | None:
    """The artifact's tokenizer, if it carries one.

    Raises:
        ArtifactError: its file cannot be read.
    """
    text = artifact.read_text("tokenizer.json")
    return None if text is None else Tokenizer(text, str(artifact.path / "tokenizer.json"))
