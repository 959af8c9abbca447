"""The compiled model's side of a comparison. B: sequences the artifact holds, V: vocabulary."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.executor import Executor


def greedy(executor: Executor, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
    """The likeliest continuation, token by token; end-of-sequence ids do not end it."""
    length = len(prompt)
    token = int(executor.prefill(0, prompt, 0, 0).argmax())
    yield token
    for position in range(length, length + new_tokens - 1):
        token = int(decode_first(executor, token, position).argmax())
        yield token


def decode_first(executor: Executor, token: int, position: int) -> NDArray[np.float32]:
    """Appends a token to the first sequence, the others left alone; returns its logits [V]."""
    tokens, positions, lengths, counts = np.zeros((4, executor.batch), np.int64)
    tokens[0], positions[0], lengths[0], counts[0] = token, position, position, 1
    logits: NDArray[np.float32] = executor.decode(tokens, positions, lengths, counts)[0]
    return logits


def compiled_logits(
    executor: Executor, tokens: Sequence[int], *, reading: bool = False
) -> Iterator[NDArray[np.float32]]:
    """The logits after each token, teacher-forced, in chunks [n, V] valid until the next is asked for.

    The widest verify gives the logits of all its tokens; a commit then confirms them. Slots are evicted as in
    decoding, or with ``reading`` as while a prompt is read.
    """
    if not executor.verify_widths:
        for position, token in enumerate(tokens):
            yield decode_first(executor, token, position)[None]
        return
    width = executor.verify_widths[-1]
    batch = np.zeros((executor.batch, width), np.int64)
    lengths, accepted = np.zeros((2, executor.batch), np.int64)
    begin = 0
    while begin < len(tokens):
        chunk = tokens[begin : begin + min(width, executor.exact_rows(0, begin))]
        # Padding repeats the last token and position, so that lookups by either stay within their tables.
        index = np.minimum(np.arange(width), len(chunk) - 1)
        batch[0] = np.asarray(chunk)[index]
        lengths[0], accepted[0] = begin, len(chunk)
        logits = executor.verify(batch, np.broadcast_to(begin + index, batch.shape), lengths, reading=reading)
        executor.commit(lengths, accepted)
        yield logits[0, : len(chunk)]
        begin += len(chunk)
