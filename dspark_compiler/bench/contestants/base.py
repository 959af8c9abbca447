"""What a contestant is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dspark_compiler.bench.memory import Memory


@dataclass(frozen=True)
class Setup:
    """What a contestant is made from; lengths in tokens.

    ``model`` is the source model as the command line takes it (None: only the artifact is run), ``dtype`` that of the
    artifact's weights, ``device`` that it runs on, by its target's name, and ``number`` which of these.
    """

    artifact: str
    model: str | None
    dtype: str
    threads: int
    prompt_len: int
    new_tokens: int
    device: str = "cpu"
    number: int = 0

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

    @property
    def memory(self) -> Memory:
        """What it takes of the device's."""

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """Greedy tokens step by step, those of a step as soon as they are known; end-of-sequence ids do not end it."""
