"""What a contestant is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Setup:
    """What a contestant is made from; lengths in tokens.

    ``model`` is the source model as the command line takes it (None: only the artifact is run), ``dtype`` that of the
    artifact's weights.
    """

    artifact: str
    model: str | None
    dtype: str
    threads: int
    prompt_len: int
    new_tokens: int

    @property
    def source(self) -> str:
        """The source model, for contestants that need one."""
        assert self.model is not None, "found before a contestant starts that needs it"
        return self.model


class Contestant(Protocol):
    """One way to run the model, loaded and ready."""

    @property
    def options(self) -> Mapping[str, str]:
        """Settings and versions that a reader needs to judge the result."""

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """Greedy tokens step by step, those of a step as soon as they are known; end-of-sequence ids do not end it."""
