"""What an artifact knows of its origin: the source model and the tokenizer."""

import json

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.tokenizer import Tokenizer


def recorded_source(artifact: Artifact) -> str | None:
    """What the compile was given as MODEL, as report.json says; None if it does not.

    Raises:
        ArtifactError: report.json is damaged.
    """
    text = artifact.read_text("report.json")
    if text is None:
        return None
    try:
        report = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path / 'report.json'}: not valid JSON ({error}); compile again") from None
    source = report.get("source") if isinstance(report, dict) else None
    return source if isinstance(source, str) else None


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
