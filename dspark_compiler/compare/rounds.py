"""Greedy answers with an artifact's heads, against those without."""

from collections.abc import Sequence

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.agreement import TIE_MARGIN, verifies_exactly
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.compare.greedy import Answer
from dspark_compiler.errors import CheckFailedError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.heads import make_strategy
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.strategy import run


def require_same_tokens_with_heads(artifact: Artifact, executor: Executor, answers: Sequence[Answer]) -> float | None:
    """Makes the answers again in rounds that draft whole blocks: nothing is rounded another way there.

    Where something is, as by ONNX Runtime, they may part where two tokens are equally likely within rounding.

    Returns tokens a step, None if the artifact has no heads.

    Raises:
        CheckFailedError: a token differs; names prompt and position.
    """
    if artifact.manifest.heads is None:
        return None
    strategy = make_strategy(executor, artifact.manifest, paced=False)
    made = steps = 0
    for index, answer in enumerate(answers):
        params = SamplingParams(max_new_tokens=len(answer.tokens), ignore_eos=True)
        room = executor.max_seq_len - len(answer.prompt) + 1
        sequence = SequenceState(0, list(answer.prompt), params, room=room, eos_ids=frozenset(), tokenizer=None)
        for _ in run(executor, strategy, [sequence]):
            pass
        if sequence.tokens != answer.tokens and not _is_tie(artifact, executor, answer, sequence.tokens):
            pairs = enumerate(zip(sequence.tokens, answer.tokens, strict=True))
            position, (token, expected) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            raise CheckFailedError(
                f"heads change the greedy tokens of built-in prompt {index} ({len(answer.prompt)} tokens): token "
                f"{position} is {token}, without heads {expected}; this is a bug of the compiler, --no-check keeps the "
                "artifact all the same"
            )
        made += len(sequence.tokens) - 1
        steps += sequence.rounds
    return made / steps if steps else None


def _is_tie(artifact: Artifact, executor: Executor, answer: Answer, tokens: Sequence[int]) -> bool:
    """Whether tokens leave an answer only where rounding decides, and rounding may decide."""
    if verifies_exactly(artifact.manifest):
        return False
    position = next(place for place, pair in enumerate(zip(tokens, answer.tokens, strict=True)) if pair[0] != pair[1])
    text = [*answer.prompt, *answer.tokens[:position]]
    *_, last = compiled_logits(executor, text)
    return abs(float(last[-1][tokens[position]] - last[-1][answer.tokens[position]])) <= TIE_MARGIN
