"""Perplexity of a text: how likely the artifact finds it, beside its source model in float32."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_all
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.compare.likelihood import negative_log_likelihood, perplexity
from dspark_compiler.compare.prompts import sample_text, windows
from dspark_compiler.errors import InputError

Logits = Iterable[NDArray[np.float32]]


def evaluate(context: Context) -> dict[str, Any]:
    """Cuts each text into windows as long as a document; a window's first token is given, the others are predicted.

    Raises:
        InputError: no tokenizer, or no text of two tokens.
    """
    documents = _documents(context)
    result: dict[str, Any] = {
        "windows": len(documents),
        "longest_window": max(map(len, documents)),
        "tokens": sum(len(window) - 1 for window in documents),
    }
    executor = context.executor
    result["perplexity"] = _perplexity(
        context, "artifact", documents, lambda ids: compiled_logits(executor, ids, reading=True)
    )
    if context.has_eager:
        from dspark_compiler.compare.eager import eager_logits

        model = context.eager
        result["eager_perplexity"] = _perplexity(context, "eager", documents, lambda ids: eager_logits(model, ids))
        result["ratio"] = result["perplexity"] / result["eager_perplexity"]
    return result


def _documents(context: Context) -> list[list[int]]:
    tokenizer = context.text_tokenizer
    found = []
    for text in read_all(context.data) or [sample_text()]:
        found += [window for window in windows(tokenizer.encode(text), context.span) if len(window) > 1]
        if context.limit is not None and len(found) >= context.limit:
            break
    if not found:
        raise InputError(f"--data {', '.join(map(str, context.data))}: no text of at least two tokens")
    return found[: context.limit]


def _perplexity(
    context: Context, name: str, documents: list[list[int]], logits: Callable[[list[int]], Logits]
) -> float:
    total, seen = 0.0, 0
    tokens = sum(map(len, documents))

    def counted(chunks: Logits) -> Iterator[NDArray[np.float32]]:
        # A window of thousands of tokens takes a minute: progress goes by tokens.
        nonlocal seen
        for chunk in chunks:
            seen += len(chunk)
            yield chunk
            context.progress(name, seen, tokens)

    context.progress(name, 0, tokens)
    for window in documents:
        total += negative_log_likelihood(window, counted(logits(window)))
    return perplexity(total, sum(len(window) - 1 for window in documents))
