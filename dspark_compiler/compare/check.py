"""``--check``: the artifact does what its source model does, or the compile fails."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dspark_compiler.artifact import Artifact, Manifest
from dspark_compiler.compare.agreement import (
    EXACT_DTYPES,
    ROUNDING_KV_DTYPES,
    Disagreement,
    held_tokens,
    promises_equal_tokens,
)
from dspark_compiler.compare.budgets import budget_of
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.compare.greedy import Answer, agreement, judged_answers
from dspark_compiler.compare.likelihood import negative_log_likelihood, perplexity
from dspark_compiler.compare.origin import tokenizer_of
from dspark_compiler.compare.prompts import TextSampler, builtin_prompts
from dspark_compiler.compare.reference import Reference
from dspark_compiler.compare.rounds import require_same_tokens_with_heads
from dspark_compiler.errors import CheckFailedError
from dspark_compiler.runtime.executor import Executor

# Enough for a wrong kernel, mask or position to show, and a few seconds for a small model.
_NEW_TOKENS = 12
_TEXT_TOKENS = 128
_QUANTIZED_TEXT_TOKENS = 512  # where a hundredth of the perplexity is to be told from chance


@dataclass(frozen=True)
class CheckReport:
    """What was compared, and what came of it.

    ``agreement`` is the fraction of greedy tokens that are the reference's; ``ties`` counts those that differ within
    rounding, which are no failure. ``perplexity_ratio`` is the artifact's over the reference's, on a built-in text.
    ``accepted_length`` is the tokens a step with heads, None without them.
    """

    prompts: int
    tokens: int
    ties: int
    agreement: float
    perplexity_ratio: float
    accepted_length: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields, for report.json."""
        return asdict(self)


def check(
    artifact: Artifact,
    reference: Reference,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Compares the artifact with its source, run by the ``reference``: eager transformers, say, in float32.

    With float32 weights and cache each greedy token must be its, given the same tokens before it, or tie with it.
    With 16-bit or quantized weights or a quantized cache the ``budget_of`` the artifact is allowed: of agreement, and
    of the perplexity of a text. With heads the tokens must be the same as without, whatever the types.

    Raises:
        CheckFailedError: names prompt, position, tokens and margin, or the budget that was exceeded.
    """
    began = time.perf_counter()
    manifest = artifact.manifest
    executor = Executor(artifact, threads=threads)
    held = held_tokens(manifest)  # what comes later is eager's no more
    new_tokens = min(_NEW_TOKENS, held)
    longest = held - new_tokens + 1
    prompts = builtin_prompts(tokenizer_of(artifact), manifest.model.vocab_size, longest)
    answers = judged_answers(executor, reference, prompts, new_tokens, progress)
    if promises_equal_tokens(manifest, held) and reference.exact:
        _require_same_tokens(answers, reference.name)
    report = CheckReport(
        prompts=len(answers),
        tokens=sum(len(answer.tokens) for answer in answers),
        ties=sum(found.is_tie for answer in answers for found in answer.disagreements),
        agreement=agreement(answers),
        perplexity_ratio=_perplexity_ratio(artifact, executor, reference),
        accepted_length=require_same_tokens_with_heads(artifact, executor, answers),
        seconds=round(time.perf_counter() - began, 3),
    )
    _require_budget(manifest, report)
    return report


def _require_same_tokens(answers: list[Answer], reference: str) -> None:
    for index, answer in enumerate(answers):
        for found in answer.disagreements:
            if not found.is_tie:
                raise CheckFailedError(_difference(index, answer, found, reference))


def _difference(index: int, answer: Answer, found: Disagreement, reference: str) -> str:
    return (
        f"the compiled model disagrees with {reference} on built-in prompt {index} ({len(answer.prompt)} tokens): "
        f"{found}; this is a bug of the compiler, --no-check keeps the artifact all the same"
    )


def _require_budget(manifest: Manifest, report: CheckReport) -> None:
    rounded, remedy = _rounding(manifest)
    budget = budget_of(manifest)
    if report.agreement < budget.agreement:
        raise CheckFailedError(
            f"with {rounded} {report.agreement:.1%} of the greedy tokens are eager's, at least "
            f"{budget.agreement:.0%} must be; compile with {remedy}, or with --no-check"
        )
    # Written so that a perplexity that is no number fails.
    if not report.perplexity_ratio <= budget.perplexity_ratio:
        raise CheckFailedError(
            f"with {rounded} the perplexity is {report.perplexity_ratio:.3f} times eager's, at most "
            f"{budget.perplexity_ratio} times is allowed; compile with {remedy}, or with --no-check"
        )


def _rounding(manifest: Manifest) -> tuple[str, str]:
    """What an artifact keeps in which types, for a message, and the options that would keep it exact."""
    what, options = [f"{manifest.dtype} weights"], ["--dtype float32"]
    if manifest.kv.dtype in ROUNDING_KV_DTYPES:
        what.append(f"a {manifest.kv.dtype} cache")
        options = (options if manifest.dtype not in EXACT_DTYPES else []) + ["--kv-dtype float32"]
    if manifest.quantization is not None:
        what[0] = f"weights quantized to {manifest.quantization.scheme}"
        options = ["another --quantize, or none"]
    return " and ".join(what), " and ".join(options)


def _perplexity_ratio(artifact: Artifact, executor: Executor, reference: Reference) -> float:
    manifest = artifact.manifest
    wanted = _TEXT_TOKENS if manifest.quantization is None else _QUANTIZED_TEXT_TOKENS
    sampler = TextSampler(tokenizer_of(artifact), manifest.model.vocab_size, seed=0)
    tokens = sampler.draw(min(wanted, held_tokens(manifest)))
    if len(tokens) < 2:
        return 1.0
    predicted = len(tokens) - 1
    mine = perplexity(negative_log_likelihood(tokens, compiled_logits(executor, tokens)), predicted)
    theirs = perplexity(negative_log_likelihood(tokens, reference.logits(tokens)), predicted)
    return mine / theirs
