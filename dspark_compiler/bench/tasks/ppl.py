"""Perplexity of a text: how likely the artifact finds it, beside its source model in float32."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_texts
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.compare.likelihood import negative_log_likelihood, perplexity
from dspark_compiler.compare.prompts import sample_text
from dspark_compiler.errors import InputError


def evaluate(context: Context) -> dict[str, Any]:
    """Cuts each text into windows as long as the context; a window's first token is given, the others are predicted.

    Raises:
        InputError: no tokenizer, or no text of two tokens.
    """
    windows = list(_windows(context))
    predicted = sum(len(window) - 1 for window in windows)
    result: dict[str, Any] = {"windows": len(windows), "tokens": predicted}
    executor = context.executor
    result["perplexity"] = _perplexity(context, "artifact", windows, lambda window: compiled_logits(executor, window))
    if context.has_eager:
        from dspark_compiler.compare.eager import eager_logits

        model = context.eager
        result["eager_perplexity"] = _perplexity(context, "eager", windows, lambda window: eager_logits(model, window))
        result["ratio"] = result["perplexity"] / result["eager_perplexity"]
    return result


def _windows(context: Context) -> Iterator[list[int]]:
    if context.tokenizer is None:
        raise InputError(f"{context.artifact.path}: has no tokenizer.json, so it cannot read text")
    texts = [sample_text()] if context.data is None else read_texts(context.data)
    length = context.artifact.manifest.max_seq_len
    found = 0
    for text in texts:
        ids = context.tokenizer.encode(text)
        for begin in range(0, len(ids), length):
            window = ids[begin : begin + length]
            if len(window) > 1 and (context.limit is None or found < context.limit):
                found += 1
                yield window
    if not found:
        raise InputError(f"--data {context.data}: no text of at least two tokens")


def _perplexity(
    context: Context,
    name: str,
    windows: list[list[int]],
    logits: Callable[[list[int]], Iterable[NDArray[np.float32]]],
) -> float:
    total = 0.0
    context.progress(name, 0, len(windows))
    for done, window in enumerate(windows):
        total += negative_log_likelihood(window, logits(window))
        context.progress(name, done + 1, len(windows))
    return perplexity(total, sum(len(window) - 1 for window in windows))
