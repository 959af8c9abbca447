"""Whether the contestants made the same tokens, and whether a difference matters."""

from dataclasses import dataclass

import numpy as np

from dspark_compiler.bench.contestants import COMPILED, NO_HEADS
from dspark_compiler.bench.harness import Measurements
from dspark_compiler.compare.agreement import Disagreement, promises_equal_tokens, verifies_exactly
from dspark_compiler.errors import CheckFailedError

_YARDSTICK = "eager"


@dataclass(frozen=True)
class Parting:
    """Where a contestant's tokens first leave the yardstick's, for one prompt (counted from 0).

    ``detail`` is None where the artifact promises no equal tokens, and nobody has looked.
    """

    name: str
    prompt: int
    position: int
    detail: Disagreement | None

    def __str__(self) -> str:
        where = f"{self.name}, prompt {self.prompt}: "
        if self.detail is None:
            return f"{where}tokens differ from token {self.position} on"
        tie = ", a tie within rounding" if self.detail.is_tie else ""
        return f"{where}{self.detail}{tie}"


def partings(measured: Measurements) -> list[Parting]:
    """All of them; ties as well as others, where the artifact promises equal tokens.

    Raises:
        CheckFailedError: tokens differ by more than rounding though the artifact promises they are the same, or at all
            with heads and without.
    """
    if verifies_exactly(measured.artifact.manifest):
        _require_equal_with_heads(measured)
    found = _first_differences(measured)
    longest = max(len(prompt) for prompt in measured.prompts) + max(
        len(generation.tokens) for contender in measured.contenders for generation in contender.generations
    )
    promised = promises_equal_tokens(measured.artifact.manifest, longest - 1)  # the last token is never looked back at
    if not promised or measured.model is None:
        return [Parting(name, prompt, position, None) for name, prompt, position in found]
    if not found:
        return []
    judged = _judge(measured, found)
    for parting in judged:
        if parting.detail is not None and not parting.detail.is_tie:
            raise CheckFailedError(f"no speed-up to report, since the tokens are not the same: {parting}")
    return judged


def _require_equal_with_heads(measured: Measurements) -> None:
    """Drafts are verified by the very model that decodes without them: nothing is rounded another way."""
    sides = [contender for contender in measured.contenders if contender.name in (COMPILED, NO_HEADS)]
    for prompt, answers in enumerate(zip(*(side.generations for side in sides), strict=True)):
        if any(answer.tokens != answers[0].tokens for answer in answers):
            places = zip(*(answer.tokens for answer in answers), strict=True)
            position = next(place for place, made in enumerate(places) if len(set(made)) > 1)
            raise CheckFailedError(
                f"no speed-up to report, since heads change the tokens: prompt {prompt}, from token {position} on; "
                "this is a bug of the compiler"
            )


def _first_differences(measured: Measurements) -> list[tuple[str, int, int]]:
    """Contestant, prompt and position of each first difference from the yardstick (eager, else the artifact)."""
    by_name = {contender.name: contender for contender in measured.contenders}
    yardstick = by_name.get(_YARDSTICK, by_name[COMPILED])
    found = []
    for contender in measured.contenders:
        pairs = zip(contender.generations, yardstick.generations, strict=True)
        for prompt, (mine, theirs) in enumerate(pairs):
            if mine.tokens != theirs.tokens:
                differs = np.asarray(mine.tokens) != np.asarray(theirs.tokens)
                found.append((contender.name, prompt, int(differs.argmax())))
    return found


def _judge(measured: Measurements, found: list[tuple[str, int, int]]) -> list[Parting]:
    """Looks up the source model's logits where tokens differ."""
    from dspark_compiler.compare.agreement import disagreements
    from dspark_compiler.compare.reference import reference_of
    from dspark_compiler.frontend.source import open_source

    assert measured.model is not None, "only an opponent, made from the source model, can differ"
    reference = reference_of(open_source(measured.model).load_for_compile())  # float32: equal tokens were promised
    by_name = {contender.name: contender for contender in measured.contenders}
    yardstick = by_name.get(_YARDSTICK, by_name[COMPILED])
    judged = []
    for name, prompt, position in found:
        # With eager among the contestants only one side can differ from its logits; else either can.
        for side in {name: by_name[name], yardstick.name: yardstick}.values():
            tokens = side.generations[prompt].tokens[: position + 1]
            context = [*measured.prompts[prompt], *tokens[:-1]]
            for detail in disagreements(tokens[-1:], reference.logits(context, first=len(context) - 1)):
                judged.append(
                    Parting(
                        side.name,
                        prompt,
                        position,
                        Disagreement(position, detail.token, detail.expected, detail.margin, detail.top2_margin),
                    )
                )
    return judged
