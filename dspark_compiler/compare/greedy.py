"""Greedy answers of the artifact, judged by eager's logits over the same tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspark_compiler.compare.agreement import Disagreement, disagreements
from dspark_compiler.compare.compiled import greedy
from dspark_compiler.compare.reference import Reference
from dspark_compiler.runtime.executor import Executor


@dataclass(frozen=True)
class Answer:
    """What the artifact made of a prompt, and where eager, given the same tokens, would have gone on otherwise."""

    prompt: list[int]
    tokens: list[int]
    disagreements: list[Disagreement]


def judged_answers(
    executor: Executor,
    reference: Reference,
    prompts: Sequence[list[int]],
    new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Continues each prompt by ``new_tokens``, then lets eager see prompt and answer in one forward pass.

    That takes one pass of eager a prompt, not one a token, and finds every differing position, not only the first.
    ``progress`` is called with prompts done and in total.
    """
    answers = []
    for index, prompt in enumerate(prompts):
        tokens = list(greedy(executor, prompt, new_tokens))
        logits = reference.logits([*prompt, *tokens[:-1]], first=len(prompt) - 1)
        answers.append(Answer(prompt, tokens, disagreements(tokens, logits)))
        if progress is not None:
            progress(index + 1, len(prompts))
    return answers


def agreement(answers: Sequence[Answer]) -> float:
    """The fraction of tokens that are eager's, ties within rounding counted as such."""
    total = sum(len(answer.tokens) for answer in answers)
    differing = sum(not found.is_tie for answer in answers for found in answer.disagreements)
    return 1 - differing / total
