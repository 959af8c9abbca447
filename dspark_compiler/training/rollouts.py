"""Answers of an artifact with heads, to see what becomes of its drafts: each round drafts a whole block."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.chat import load_chat_template
from dspark_compiler.runtime.engine import Engine
from dspark_compiler.runtime.rounds import RoundRecord
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.sequence import Completion
from dspark_compiler.training.prompts import Prompt, encode_prompts, read_prompts
from dspark_compiler.training.reliability import Rollouts

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RolloutOptions:
    """``prompts`` to answer, drawn at random from the files, ``samples`` times with up to ``new_tokens`` each."""

    prompts: int
    new_tokens: int
    temperature: float
    seed: int
    samples: int = 1

    def __post_init__(self) -> None:
        wanted = {"--prompts": self.prompts, "--samples": self.samples, "--new-tokens": self.new_tokens}
        for option, value in wanted.items():
            if value < 1:
                raise InputError(f"{option} {value}: must be at least 1")


@dataclass(frozen=True)
class Answers:
    """What was generated, and what became of the drafts."""

    completions: tuple[Completion, ...]
    rollouts: Rollouts

    @property
    def tau(self) -> float | None:
        """Tokens a round (DSpark, eq. 1), the one that corrects or follows the drafts included; None without any."""
        rounds = sum(completion.rounds for completion in self.completions)
        # The prefill brings the first token.
        tokens = sum(len(completion.tokens) - 1 for completion in self.completions)
        return tokens / rounds if rounds else None


def draw_prompts(files: Sequence[Path], options: RolloutOptions) -> list[Prompt]:
    """As many as asked for, or all there are, in the order of the files.

    Raises:
        InputError: a file that cannot be read or holds no prompts.
    """
    prompts = read_prompts(files)
    count = min(options.prompts, len(prompts))
    chosen = random.Random(options.seed).sample(range(len(prompts)), count)
    return [prompts[index] for index in sorted(chosen)]


def answer(artifact: Artifact, prompts: Sequence[Prompt], options: RolloutOptions, progress: Progress) -> Answers:
    """Answers each prompt ``options.samples`` times, as many at once as the artifact holds.

    However many that are, the answers are the same.

    Raises:
        InputError: no tokenizer, no heads, or a prompt too long for the artifact.
    """
    heads = artifact.manifest.heads
    if heads is None:
        raise InputError(f"{artifact.path}: has no decode heads; compile the model with --heads")
    records: list[RoundRecord] = []
    engine = Engine(artifact, paced=False, observer=records.append)
    completions: list[Completion] = []
    origin: list[int] = []
    encoded = [ids for ids in _encode(engine, prompts) for _ in range(options.samples)]
    for first in range(0, len(encoded), artifact.manifest.max_batch):
        part = encoded[first : first + artifact.manifest.max_batch]
        seeds = range(options.seed + first, options.seed + first + len(part))
        params = [SamplingParams(options.new_tokens, options.temperature, seed=seed) for seed in seeds]
        completions += engine.complete(part, params)
        origin += [(first + record.row) // options.samples for record in records[len(origin) :]]
        progress("generate", len(completions), len(encoded))
    return Answers(tuple(completions), _gather(records, origin))


def _encode(engine: Engine, prompts: Sequence[Prompt]) -> list[list[int]]:
    artifact = engine.artifact
    if engine.tokenizer is None:
        raise InputError(f"{artifact.path}: has no tokenizer, so it cannot read prompts")
    return encode_prompts(prompts, engine.tokenizer, load_chat_template(artifact), artifact.manifest.max_seq_len)


def _gather(records: Sequence[RoundRecord], origin: Sequence[int]) -> Rollouts:
    logits = [record.confidence_logits for record in records]
    known = [row for row in logits if row is not None]
    return Rollouts(
        np.asarray(known, dtype=np.float64) if known and len(known) == len(logits) else None,
        np.asarray([record.drafted for record in records], dtype=np.int64),
        np.asarray([record.accepted for record in records], dtype=np.int64),
        np.asarray(origin, dtype=np.int64),
    )
