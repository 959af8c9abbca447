"""Prompts a chat model writes itself (Magpie, Xu et al. 2024).

Given its chat template up to where the user's words begin, an instruct model continues with what a user would say. Such
prompts are of the kinds it was taught to answer, and there is no end of them.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.source import open_source
from dspark_compiler.runtime.chat import ChatTemplate, load_chat_template
from dspark_compiler.runtime.tokenizer import Tokenizer
from dspark_compiler.training.heads.questions import TextFolder
from dspark_compiler.training.heads.report import Report
from dspark_compiler.training.heads.sequences import rows_at_once
from dspark_compiler.training.heads.target import FrozenTarget
from dspark_compiler.training.heads.train import choose_device
from dspark_compiler.training.heads.writer import Writer
from dspark_compiler.training.overlap import Overlap, split_words
from dspark_compiler.training.prompts import read_prompts

SHARED_WORDS = 10  # in a row: a prompt that has so many in common with an excluded one says the same
_MARK = "\u241fwords of the user\u241f"
_FEWEST = 0.01  # of what is written: where less is new, asking on is no use
_PATIENCE = 3  # batches


@dataclass(frozen=True)
class OwnPromptOptions:
    """``count`` prompts of up to ``new_tokens`` tokens."""

    count: int
    temperature: float = 1.0
    new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value in (("--count", self.count), ("--new-tokens", self.new_tokens)):
            if value < 1:
                raise InputError(f"{option} {value}: must be at least 1")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must be at least 0")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"--temperature {self.temperature}: must be above 0")


def own_prompts(
    model: str, excluded: Sequence[Path], device: str | None, options: OwnPromptOptions, report: Report
) -> list[str]:
    """Prompts of the model that ``model`` names, unlike those in the files ``excluded``; see write_own_prompts.

    Raises:
        InputError: a model, file or option that cannot be used.
        UnsupportedModelError: a model that cannot be let write.
    """
    source, chosen = open_source(model), choose_device(device)
    forbidden = [
        str(message["content"]) for prompt in read_prompts(excluded, "--exclude") for message in prompt.messages
    ]
    with tempfile.TemporaryDirectory() as directory:
        folder = TextFolder(Path(directory))
        if "tokenizer.json" not in source.write_tokenizer(folder.path):
            raise InputError(f"{source.path}: has no tokenizer, so it cannot write prompts")
        template = load_chat_template(folder)
        if template is None:
            raise InputError(
                f"{source.path}: has no chat template, so it does not know how users speak; give an instruct model"
            )
        tokenizer = Tokenizer((folder.path / "tokenizer.json").read_text(encoding="utf-8"), str(source.path))
    opened = opening(template)
    tokens = len(tokenizer.encode(opened, special=False)) + options.new_tokens
    if tokens > source.max_positions:
        raise InputError(
            f"--new-tokens {options.new_tokens}: with the chat template {tokens} tokens, and {source.name} reads "
            f"{source.max_positions}; give fewer"
        )
    report("load model")
    target = FrozenTarget(source, chosen)
    return write_own_prompts(target, tokenizer, opened, Overlap(forbidden, SHARED_WORDS), options, report)


def write_prompts(path: Path, texts: Sequence[str]) -> None:
    """One object with "prompt" a line; the file is written whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    os.replace(partial, path)


def opening(template: ChatTemplate) -> str:
    """A conversation up to where the user's first words begin.

    Raises:
        InputError: the template does not show the user's words as they are.
    """
    before, mark, _ = template.render([{"role": "user", "content": _MARK}]).partition(_MARK)
    if not mark:
        raise InputError("the chat template does not show the user's words as they are, so none can be written for it")
    return before


def write_own_prompts(
    target: FrozenTarget,
    tokenizer: Tokenizer,
    opened: str,
    excluded: Overlap,
    options: OwnPromptOptions,
    report: Report,
) -> list[str]:
    """Different prompts, in the order they were written; the same for the same seed on the same device.

    Left out are those without an end or without words, those that differ from another only in case or punctuation, and
    those that share a run of words with what is ``excluded``.

    Raises:
        InputError: the model hardly writes anything new.
    """
    ids = tokenizer.encode(opened, special=False)
    rows = rows_at_once(target.device)
    writer = Writer(target, rows, len(ids) + options.new_tokens, options.temperature)
    generator = torch.Generator(target.device).manual_seed(options.seed)
    kept: dict[tuple[str, ...], str] = {}
    barren = 0
    report("write prompts", 0, options.count)
    while len(kept) < options.count:
        before = len(kept)
        for text in _finished(writer, tokenizer, ids, options.new_tokens, target.eos_token_ids, generator):
            words = split_words(text)
            if words and words not in kept and text not in excluded and len(kept) < options.count:
                kept[words] = text
        barren = 0 if len(kept) - before > _FEWEST * rows else barren + 1
        if barren == _PATIENCE and len(kept) < options.count:
            raise InputError(
                f"--count {options.count}: after {len(kept)} prompts hardly any new ones come to an end within "
                f"--new-tokens {options.new_tokens}; ask for fewer, or for longer ones"
            )
        report("write prompts", len(kept), options.count)
    return list(kept.values())


def _finished(
    writer: Writer,
    tokenizer: Tokenizer,
    ids: list[int],
    new_tokens: int,
    ends: tuple[int, ...],
    generator: torch.Generator,
) -> Iterator[str]:
    """The texts of one batch that came to their end."""
    written = writer.write([ids] * writer.rows, new_tokens, generator)
    for row, length in zip(written.ids.tolist(), written.length.tolist(), strict=True):
        if row[length - 1] in ends:
            yield tokenizer.decode(row[len(ids) : length - 1]).strip()
