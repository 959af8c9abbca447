"""What the contestants that run on torch share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from dspark_compiler.compare.eager import cache_keyword
from dspark_compiler.frontend.source import open_source


def load_model(model: str, dtype: str, threads: int) -> PreTrainedModel:
    """The source model with PyTorch's fused attention; sets torch's number of threads.

    Raises:
        InputError: no such model, or one that is damaged.
    """
    torch.set_num_threads(threads)
    return open_source(model).load(getattr(torch, dtype), attention="sdpa")


@torch.inference_mode()  # on a generator: only while it runs, not while it waits
def greedy(
    forward: Callable[..., Any], model: PreTrainedModel, cache: Cache, prompt: Sequence[int], new_tokens: int
) -> Iterator[Sequence[int]]:
    """Prefill and decode through ``forward`` (``model``, or a compiled form of it) with ``cache``, which is empty."""
    keyword = cache_keyword(model)
    ids = torch.tensor([list(prompt)])  # [1, len(prompt)], then [1, 1]
    start = 0
    for _ in range(new_tokens):
        positions = torch.arange(start, start + ids.shape[1])[None]
        options = {keyword: cache, "use_cache": True, "logits_to_keep": 1}
        logits = forward(ids, position_ids=positions, **options).logits
        start += ids.shape[1]
        ids = logits[:, -1:].argmax(-1)
        yield [int(ids)]
