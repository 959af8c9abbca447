"""The built-in suite: how much of a model's quality an artifact with a pruned cache keeps."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.compare.continuation import Continuation, agreement, continuations
from dspark_compiler.compare.likelihood import negative_log_likelihood, perplexity
from dspark_compiler.compare.needle import DEPTHS, NeedleMaker, accuracy
from dspark_compiler.compare.origin import tokenizer_of
from dspark_compiler.compare.prompts import long_text, windows
from dspark_compiler.compare.retrieval import answers
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.tokenizer import Tokenizer

# Tokens of the longest document. SmolLM2-135M on 2 cores takes a minute and a half for all.
LONGEST = 4096
_CONTINUED = 2
_NEW_TOKENS = 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class QualityReport:
    """What the suite measured; all documents have at most ``length`` tokens.

    ``perplexity`` is that of the built-in long text, over its first ``length`` tokens. ``retrieval`` is the fraction
    of ``questions`` answered, each about one of five needles of a document; None where those do not fit ``length``.
    ``agreement`` is the fraction of the unpruned artifact's greedy tokens this one chose, too, ``near_agreement`` the
    same where a token counts as well if the unpruned one finds it at least half as likely as its own; both are 1 for
    the unpruned artifact itself.
    """

    length: int
    perplexity: float
    retrieval: float | None
    questions: int
    agreement: float
    near_agreement: float
    continuations: tuple[Continuation, ...]

    def to_json(self) -> dict[str, Any]:
        """The numbers, for report.json."""
        return {name: value for name, value in asdict(self).items() if name != "continuations"}


def measure_quality(
    artifact: Artifact,
    *,
    unpruned: QualityReport | None = None,
    length: int = LONGEST,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
) -> QualityReport:
    """Runs the suite; ``unpruned`` is the report of the artifact to be compared with, None where this is that one.

    ``length`` bounds the documents' tokens; a budget of as many slots or more is not put to the test. ``progress`` is
    called with a stage, steps done and steps in total. The same artifact gets the same report.

    Raises:
        InputError: the artifact has no tokenizer, or holds less than two tokens.
    """
    tokenizer = tokenizer_of(artifact)
    if tokenizer is None:
        raise InputError(
            f"{artifact.path}: has no tokenizer.json, and quality is measured on text; add one to the model"
        )
    executor = Executor(artifact, threads=threads)
    ids = tokenizer.encode(long_text())
    length = min(length, artifact.manifest.max_seq_len, len(ids))
    if length < 2:
        raise InputError(f"quality is measured on texts of at least 2 tokens, {artifact.path} holds {length}")
    answered = _retrieval(executor, tokenizer, length, progress)
    if unpruned is None:
        new_tokens = min(_NEW_TOKENS, length // 2)
        prompts = windows(ids, length - new_tokens + 1)[:_CONTINUED]
        made = continuations(executor, prompts, new_tokens, lambda *steps: progress("continue", *steps))
        same = near = 1.0
    else:
        made = list(unpruned.continuations)
        found = agreement(executor, made, lambda *steps: progress("agreement", *steps))
        same, near = found.fraction, found.near_fraction
    progress("perplexity", 0, 0)
    nll = negative_log_likelihood(ids[:length], compiled_logits(executor, ids[:length], reading=True))
    return QualityReport(
        length=length,
        perplexity=perplexity(nll, length - 1),
        retrieval=accuracy(answered) if answered else None,
        questions=len(answered),
        agreement=same,
        near_agreement=near,
        continuations=tuple(made),
    )


def _retrieval(executor: Executor, tokenizer: Tokenizer, length: int, progress: Progress) -> list[bool]:
    """Whether each question was answered; none if documents of ``length`` tokens are too short for needles."""
    maker = NeedleMaker(tokenizer, long_text(), length)
    found = []
    for done, depth in enumerate(DEPTHS):
        progress("retrieval", done, len(DEPTHS))
        try:
            document = maker.document("multikey", depth)
        except InputError:
            return []
        found += answers(executor, tokenizer, document)
    return found


def quality_losses(unpruned: QualityReport, pruned: QualityReport) -> dict[str, float]:
    """What was lost, by measure: 0 where nothing was, 0.01 where something is one hundredth worse.

    - ``perplexity``, its ratio less 1: how well long text is followed on average. It hardly moves where a rare but
      decisive token of the past was evicted, and so needs the other two.
    - ``retrieval``, the fraction of the unpruned artifact's answers that are missing: what a single forgotten token
      costs. Alone it is blind: a cache can pass it and fail at everything that weighs many tokens at once. Few
      questions are asked, so that any that is lost is more than a budget of a few hundredths allows. Questions come
      after all they ask for, when a policy that keeps what was looked at so far may have evicted it.
    - ``near_agreement``, less than 1: how often the text that would be generated becomes another, for worse. Tokens
      the unpruned model finds at least half as likely as its own do not count, since near ties turn over with any
      rounding: counting them would fill a budget of 0.01 with noise.

    Gains are no losses below 0. A perplexity that is no number is an infinite loss.
    """
    assert unpruned.length == pruned.length, "reports of different documents"
    ratio = pruned.perplexity / unpruned.perplexity
    missing = 0.0
    if unpruned.retrieval and pruned.retrieval is not None:
        missing = 1 - pruned.retrieval / unpruned.retrieval
    return {
        "perplexity": max(0.0, ratio - 1) if ratio == ratio else float("inf"),
        "retrieval": max(0.0, missing),
        "near_agreement": 1 - pruned.near_agreement,
    }


def quality_loss(unpruned: QualityReport, pruned: QualityReport) -> float:
    """The largest of ``quality_losses``: gains in one do not make up for losses in another."""
    return max(quality_losses(unpruned, pruned).values())
