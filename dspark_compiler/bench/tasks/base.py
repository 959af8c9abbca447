"""What every task works with."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.tasks.reference import Reference
from dspark_compiler.compare.origin import recorded_source, source_of, tokenizer_of
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Context:
    """An evaluation: the artifact and the options of the command.

    ``data`` empty is the built-in text or prompts; ``limit`` bounds the windows, prompts or passages; ``length`` is
    that of a document in tokens, None the artifact's limit; ``model`` None is the model the artifact was compiled
    from; ``reference`` is another artifact of the same model to compare with. ``beside_eager`` False leaves the source
    model out where a task would only show it beside the artifact. ``progress`` is called with a stage, steps done and
    steps in total.

    Raises:
        InputError: a value out of range, naming the option.
    """

    artifact: Artifact
    data: tuple[Path, ...] = ()
    model: str | None = None
    limit: int | None = None
    threads: int | None = None
    progress: Progress = lambda *_: None
    length: int | None = None
    reference: Reference | None = None
    beside_eager: bool = True

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: must be at least 1")
        longest = self.artifact.manifest.max_seq_len
        if self.length is not None and not 2 <= self.length <= longest:
            raise InputError(f"--length {self.length}: must be at least 2, and the artifact holds {longest} tokens")

    @property
    def span(self) -> int:
        """Tokens of a document."""
        return self.length or self.artifact.manifest.max_seq_len

    @cached_property
    def executor(self) -> Executor:
        """The artifact, loaded."""
        self.progress("load artifact", 0, 0)
        return Executor(self.artifact, threads=self.threads)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The artifact's tokenizer, if it has one."""
        return tokenizer_of(self.artifact)

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer, for a task that cannot do without.

        Raises:
            InputError: it has none.
        """
        if self.tokenizer is None:
            raise InputError(f"{self.artifact.path}: has no tokenizer.json, so it cannot read text")
        return self.tokenizer

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
        """Whether the source model is wanted, and named or, unasked, at hand."""
        if not self.beside_eager:
            return False
        if self.model is not None:
            return True
        source = recorded_source(self.artifact)
        return source is not None and Path(source).exists() and importlib.util.find_spec("transformers") is not None
