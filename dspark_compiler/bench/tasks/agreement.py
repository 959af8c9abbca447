"""Greedy tokens of the artifact beside those its source model, in float32, would have chosen.

With ``--against`` another artifact takes the source model's place (against.py).
"""

from typing import Any

from dspark_compiler.bench.tasks import against
from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_all
from dspark_compiler.compare.prompts import builtin_prompts

_NEW_TOKENS = 64


def evaluate(context: Context) -> dict[str, Any]:
    """Continues each prompt greedily; eager judges every token, given the artifact's tokens before it.

    Raises:
        InputError: no source model, or prompts that cannot be read.
    """
    if context.reference is not None:
        return against.evaluate(context, context.reference)
    from dspark_compiler.compare.greedy import agreement, judged_answers
    from dspark_compiler.compare.reference import Eager

    new_tokens = min(_NEW_TOKENS, (context.span + 1) // 2)
    prompts = _prompts(context, context.span - new_tokens + 1)[: context.limit]
    executor, eager = context.executor, Eager(context.eager)
    answers = judged_answers(
        executor, eager, prompts, new_tokens, lambda done, total: context.progress("compare", done, total)
    )
    return {
        "prompts": len(answers),
        "identical_prompts": sum(not answer.disagreements for answer in answers),
        "tokens": sum(len(answer.tokens) for answer in answers),
        "agreement": agreement(answers),
        "ties": sum(found.is_tie for answer in answers for found in answer.disagreements),
        "disagreements": [
            {
                "prompt": index,
                "position": found.position,
                "token": found.token,
                "eager_token": found.expected,
                "margin": found.margin,
                "tie": found.is_tie,
            }
            for index, answer in enumerate(answers)
            for found in answer.disagreements
        ],
    }


def _prompts(context: Context, longest: int) -> list[list[int]]:
    if not context.data:
        return builtin_prompts(context.tokenizer, context.artifact.manifest.model.vocab_size, longest)
    tokenizer = context.text_tokenizer
    return [tokenizer.encode(text)[:longest] for text in read_all(context.data, by_line=True)]
