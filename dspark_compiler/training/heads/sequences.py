"""The sequences heads learn from: the target's own answers to all prompts, kept part by part."""

import time
from collections.abc import Sequence

import torch

from dspark_compiler.training.heads.anchors import Sequences
from dspark_compiler.training.heads.interrupts import Interrupt
from dspark_compiler.training.heads.options import GenerationOptions
from dspark_compiler.training.heads.report import Report
from dspark_compiler.training.heads.target import FrozenTarget
from dspark_compiler.training.heads.work import Work
from dspark_compiler.training.heads.writer import Writer

_ROWS_GPU, _ROWS_CPU = 1024, 32
_SEED_STRIDE = 100_003  # so that parts of neighbouring seeds do not share theirs


def write_sequences(
    target: FrozenTarget,
    prompts: Sequence[Sequence[int]],
    times: Sequence[int],
    options: GenerationOptions,
    work: Work,
    interrupt: Interrupt,
    report: Report,
) -> Sequences:
    """Lets the target continue prompt i ``options.samples * times[i]`` times; parts that are there already stay.

    Raises:
        KeyboardInterrupt: ``interrupt`` asks for it; parts that are complete are kept.
    """
    repeated = (i for i, count in enumerate(times) for _ in range(options.samples * count))
    order = sorted(repeated, key=lambda i: len(prompts[i]))
    rows = min(rows_at_once(target.device), len(order))
    parts = [order[begin : begin + rows] for begin in range(0, len(order), rows)]
    report("write sequences", 0, len(parts))
    columns = min(options.max_length, max(map(len, prompts)) + options.new_tokens)
    writer = Writer(target, rows, columns, options.temperature)
    generator = torch.Generator(target.device)
    tokens, began = 0, time.monotonic()
    for number, part in enumerate(parts):
        if not work.has_part(number):
            generator.manual_seed(options.seed * _SEED_STRIDE + number)
            written = writer.write([prompts[i] for i in part], options.new_tokens, generator)
            work.write_part(
                number, Sequences(written.ids, written.prompt, written.length, torch.tensor(part, dtype=torch.int32))
            )
            tokens += int((written.length - written.prompt).sum())
            slow = f" (steps cannot be captured as CUDA graphs: {writer.obstacle})" if writer.obstacle else ""
            report.note(f"{tokens} tokens written, {tokens / (time.monotonic() - began):.0f} a second{slow}")
        if interrupt.asked:
            raise KeyboardInterrupt
        report("write sequences", number + 1, len(parts))
    return work.sequences(len(parts))


def rows_at_once(device: torch.device) -> int:
    """How many sequences are best written together."""
    return _ROWS_GPU if device.type == "cuda" else _ROWS_CPU
