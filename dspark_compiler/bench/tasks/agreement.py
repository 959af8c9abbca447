"""Greedy tokens of the artifact beside those its source model, in float32, would have chosen."""

from typing import Any

from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_texts
from dspark_compiler.compare.prompts import builtin_prompts
from dspark_compiler.errors import InputError

_NEW_TOKENS = 64


def evaluate(context: Context) -> dict[str, Any]:
    """Continues each prompt greedily; eager judges every token, given the artifact's tokens before it.

    Raises:
        InputError: no source model, or prompts that cannot be read.
    """
    from dspark_compiler.compare.greedy import agreement, judged_answers

    manifest = context.artifact.manifest
    new_tokens = min(_NEW_TOKENS, (manifest.max_seq_len + 1) // 2)
    prompts = _prompts(context, manifest.max_seq_len - new_tokens + 1)[: context.limit]
    executor, model = context.executor, context.eager
    answers = judged_answers(
        executor, model, prompts, new_tokens, lambda done, total: context.progress("compare", done, total)
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
    if context.data is None:
        return builtin_prompts(context.tokenizer, context.artifact.manifest.model.vocab_size, longest)
    if context.tokenizer is None:
        raise InputError(f"{context.artifact.path}: has no tokenizer.json, so it cannot read the prompts of --data")
    return [context.tokenizer.encode(text)[:longest] for text in read_texts(context.data, by_line=True)]
