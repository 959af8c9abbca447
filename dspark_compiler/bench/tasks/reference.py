"""Another artifact of the same model, as a yardstick."""

from collections.abc import Callable, Sequence

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.continuation import Continuation, continuations
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.executor import Executor


class Reference:
    """An artifact that others are compared with; remembers what it made of the prompts it saw last."""

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        self.artifact = artifact
        self._threads = threads
        self._asked: tuple[Sequence[Sequence[int]], int] | None = None
        self._made: list[Continuation] = []

    def require_same_model(self, artifact: Artifact) -> None:
        """Makes sure that tokens of the two can be compared.

        Raises:
            InputError: they are of different models, or have different vocabularies.
        """
        mine, theirs = self.artifact.manifest.model, artifact.manifest.model
        for what, left, right in (
            ("architecture", mine.architecture, theirs.architecture),
            ("vocabulary", mine.vocab_size, theirs.vocab_size),
            ("number of layers", mine.num_layers, theirs.num_layers),
            ("width", mine.hidden_size, theirs.hidden_size),
        ):
            if left != right:
                raise InputError(
                    f"--against {self.artifact.path}: another model, its {what} is {left} and that of "
                    f"{artifact.path} is {right}; give an artifact of the same model"
                )
        if self.artifact.read_text("tokenizer.json") != artifact.read_text("tokenizer.json"):
            raise InputError(
                f"--against {self.artifact.path}: its tokenizer is not that of {artifact.path}; "
                "give an artifact of the same model"
            )

    def continuations(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, progress: Callable[[int, int], None]
    ) -> list[Continuation]:
        """Each prompt continued greedily by ``new_tokens``. Loads the artifact for that time only."""
        if self._asked != (prompts, new_tokens):
            self._made = continuations(Executor(self.artifact, threads=self._threads), prompts, new_tokens, progress)
            self._asked = (prompts, new_tokens)
        return self._made
