"""The source model in transformers, as the yardstick. V: vocabulary."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

_CHUNK = 256  # tokens whose logits exist at a time


def cache_keyword(model: PreTrainedModel) -> str:
    """The name ``model.forward`` takes its cache by; transformers is renaming it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def eager_logits(model: PreTrainedModel, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
    """The logits after each token from index ``first`` on, in chunks [n, V] of len(tokens) - first rows together.

    Every token is given (teacher forcing); nothing the model would have chosen is fed back.
    """
    ids = torch.tensor([list(tokens)], device=model.device)  # [1, len(tokens)]
    options: dict[str, Any] = {cache_keyword(model): DynamicCache(config=model.config), "use_cache": True}
    with torch.inference_mode():
        for begin in range(0, ids.shape[1], _CHUNK):
            chunk = ids[:, begin : begin + _CHUNK]
            wanted = min(chunk.shape[1], begin + chunk.shape[1] - first)
            output = model(chunk, logits_to_keep=max(wanted, 1), **options)
            if wanted > 0:
                logits: NDArray[np.float32] = output.logits[0].float().cpu().numpy()
                yield logits
