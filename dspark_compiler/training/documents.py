"""Texts become documents of one length, in tokens."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from dspark_compiler.bench.tasks.data import read_texts
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.runtime.tokenizer import Tokenizer


def source_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        InputError: it has none.
    """
    with tempfile.TemporaryDirectory() as directory:
        if "tokenizer.json" not in source.write_tokenizer(Path(directory)):
            raise InputError(f"{source.path}: has no tokenizer, so it cannot read text")
        return Tokenizer((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"), str(source.path))


def cut_documents(
    files: Sequence[Path], tokenizer: Tokenizer, count: int, length: int, generator: Generator
) -> list[Tensor]:
    """``count`` pieces of ``length`` ids each, int64, from anywhere in the texts, in random order.

    Each begins with what the tokenizer puts before a text.

    Raises:
        InputError: a file that cannot be read, or too little text.
    """
    before = tokenizer.encode("")
    size = length - len(before)
    pieces = []
    for text in (text for file in files for text in read_texts(file)):
        ids = tokenizer.encode(text, special=False)
        pieces += [ids[begin : begin + size] for begin in range(0, len(ids) - size + 1, size)]
    if len(pieces) < count:
        raise InputError(
            f"--data: gives {len(pieces)} documents of {length} tokens, {count} are wanted; "
            "give more text, or smaller --documents or --length"
        )
    chosen = torch.randperm(len(pieces), generator=generator)[:count]
    return [torch.tensor(before + pieces[index]) for index in chosen.tolist()]
