"""Answers that the target wrote for an earlier run: they teach again, beside those written for this one."""

from collections.abc import Collection, Sequence

import torch

from dspark_compiler.errors import InputError
from dspark_compiler.training.heads.anchors import Sequences, join
from dspark_compiler.training.heads.work import Work

_NOBODY = -1  # their prompts' numbers mean nothing in this run


def read_earlier(folders: Sequence[Work], model: str, limit: int) -> Sequences | None:
    """What the work folders of earlier runs hold, None if there are none; ``limit`` is this run's longest sequence.

    Raises:
        InputError: a folder holds no sequences, those of another model, or longer ones.
    """
    found = []
    for work in folders:
        options = work.options("generation")
        if options is None or not (parts := work.parts()):
            raise InputError(
                f"--sequences {work.path}: holds no sequences; give the folder HEADS.work that training has left"
            )
        if options["model"] != model:
            raise InputError(f"--sequences {work.path}: was written by {options['model']}, not by {model}")
        if options["max_length"] > limit:
            raise InputError(
                f"--sequences {work.path}: up to {options['max_length']} tokens long; give --max-length "
                f"{options['max_length']}"
            )
        found.append(work.sequences(parts))
    if not found:
        return None
    joined = join(found)
    return Sequences(joined.ids, joined.prompt, joined.length, torch.full_like(joined.origin, _NOBODY))


def without_prompts(sequences: Sequences, prompts: Collection[Sequence[int]]) -> Sequences:
    """Those that answer none of these prompts, so that what judges has not taught."""
    judged = {tuple(prompt) for prompt in prompts}
    rows = zip(sequences.ids, sequences.prompt.tolist(), strict=True)
    kept = [i for i, (ids, length) in enumerate(rows) if tuple(ids[:length].tolist()) not in judged]
    return sequences.select(torch.tensor(kept, dtype=torch.int64))
