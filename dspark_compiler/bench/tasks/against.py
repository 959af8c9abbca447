"""Greedy tokens of another artifact of the model, such as one whose cache is not pruned, judged by this one."""

from typing import Any

from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_all
from dspark_compiler.bench.tasks.reference import Reference
from dspark_compiler.compare.continuation import agreement
from dspark_compiler.compare.prompts import long_text, windows
from dspark_compiler.errors import InputError

_NEW_TOKENS = 64
_BUILTIN_PROMPTS = 4


def evaluate(context: Context, reference: Reference) -> dict[str, Any]:
    """The reference continues long prompts; the fraction of its tokens that the artifact would have chosen, too.

    Each token is judged given the reference's tokens before it.

    Raises:
        InputError: another model, no tokenizer, or no text.
    """
    reference.require_same_model(context.artifact)
    span = min(context.span, reference.artifact.manifest.max_seq_len)
    new_tokens = min(_NEW_TOKENS, span // 2)
    prompts = _prompts(context, span - new_tokens + 1)[: context.limit]
    references = reference.continuations(
        prompts, new_tokens, lambda done, total: context.progress("reference", done, total)
    )
    executor = context.executor
    found = agreement(executor, references, lambda done, total: context.progress("compare", done, total))
    return {
        "against": str(reference.artifact.path),
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "tokens": found.tokens,
        "agreement": found.fraction,
        "near_agreement": found.near_fraction,
    }


def _prompts(context: Context, length: int) -> list[list[int]]:
    """Pieces of ``length`` tokens of each text; a rest less than half as long only where it is all there is."""
    tokenizer = context.text_tokenizer
    found = []
    for text in read_all(context.data) or [long_text()]:
        pieces = windows(tokenizer.encode(text), length)
        found += [piece for index, piece in enumerate(pieces) if index == 0 or 2 * len(piece) >= length]
    if not any(found):
        raise InputError("--data: no text of at least one token")
    return found if context.data else found[:_BUILTIN_PROMPTS]
