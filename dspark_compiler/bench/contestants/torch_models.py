"""What the contestants that run on torch share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.memory import Memory, host_memory, torch_memory
from dspark_compiler.compare.eager import cache_keyword
from dspark_compiler.errors import DeviceError
from dspark_compiler.frontend.source import open_source


def load_model(setup: Setup) -> PreTrainedModel:
    """The source model with PyTorch's fused attention, where the artifact runs; sets torch's number of threads.

    Raises:
        InputError: no such model, or one that is damaged.
        DeviceError: this torch cannot use the GPU.
    """
    if setup.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"torch {torch.__version__} cannot use the GPU; install the build of torch for its driver")
    torch.set_num_threads(setup.threads)
    model = open_source(setup.source).load(getattr(torch, setup.dtype), attention="sdpa")
    model.to(device_of(setup))
    return model


def device_of(setup: Setup) -> torch.device:
    """The artifact's, as torch names it; for a Vulkan device the GPU torch knows, else the processor."""
    if setup.device == "cuda":
        return torch.device("cuda", setup.number)
    on_gpu = setup.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def memory_of(setup: Setup) -> Memory:
    """What its contestants take memory of."""
    return host_memory() if device_of(setup).type == "cpu" else torch_memory()


@torch.inference_mode()  # on a generator: only while it runs, not while it waits
def greedy(
    forward: Callable[..., Any], model: PreTrainedModel, cache: Cache, prompt: Sequence[int], new_tokens: int
) -> Iterator[Sequence[int]]:
    """Prefill and decode through ``forward`` (``model``, or a compiled form of it) with ``cache``, which is empty."""
    keyword = cache_keyword(model)
    ids = torch.tensor([list(prompt)], device=model.device)  # [1, len(prompt)], then [1, 1]
    start = 0
    for _ in range(new_tokens):
        positions = torch.arange(start, start + ids.shape[1], device=model.device)[None]
        options = {keyword: cache, "use_cache": True, "logits_to_keep": 1}
        logits = forward(ids, position_ids=positions, **options).logits
        start += ids.shape[1]
        ids = logits[:, -1:].argmax(-1)
        yield [int(ids)]
