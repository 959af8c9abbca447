"""transformers as it is, with its growing key-value cache."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import transformers
from transformers import DynamicCache

from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.contestants.torch_models import greedy, load_model, memory_of


class Eager:
    """See Contestant."""

    def __init__(self, setup: Setup) -> None:
        self._model = load_model(setup)
        self.memory = memory_of(setup)
        self.options: Mapping[str, str] = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": "sdpa",
            "cache": "DynamicCache",
        }

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """See Contestant."""
        return greedy(self._model, self._model, DynamicCache(config=self._model.config), prompt, new_tokens)
