"""What every task works with."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.origin import recorded_source, source_of, tokenizer_of
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Context:
    """An evaluation: the artifact and the options of the command.

    ``data`` None is the built-in text or prompts; ``limit`` bounds the windows or prompts; ``model`` None is the model
    the artifact was compiled from. ``progress`` is called with a stage, steps done and steps in total.
    """

    artifact: Artifact
    data: Path | None = None
    model: str | None = None
    limit: int | None = None
    threads: int | None = None
    progress: Callable[[str, int, int], None] = lambda *_: None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: must be at least 1")

    @cached_property
    def executor(self) -> Executor:
        """The artifact, loaded."""
        self.progress("load artifact", 0, 0)
        return Executor(self.artifact, threads=self.threads)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The artifact's tokenizer, if it has one."""
        return tokenizer_of(self.artifact)

    @cached_property
    def eager(self) -> "PreTrainedModel":
        """The source model, with float32 weights.

        Raises:
            InputError: it is not known which, or cannot be opened.
        """
        import torch

        from dspark_compiler.frontend.source import open_source

        source = source_of(self.artifact, self.model)
        self.progress("load source model", 0, 0)
        return open_source(source).load(torch.float32)

    @property
    def has_eager(self) -> bool:
        """Whether the source model is named or, unasked, at hand."""
        if self.model is not None:
            return True
        source = recorded_source(self.artifact)
        return source is not None and Path(source).exists() and importlib.util.find_spec("transformers") is not None
