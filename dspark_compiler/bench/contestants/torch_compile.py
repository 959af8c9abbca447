"""torch.compile over the whole model, with a cache of fixed size so that nothing is compiled twice."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import transformers
from transformers import StaticCache

from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.contestants.torch_models import device_of, greedy, load_model, memory_of

# On a GPU the one that captures CUDA graphs, as artifacts do: without it, launching kernels takes most of the time.
_MODES = {"cpu": "default", "cuda": "reduce-overhead"}


class TorchCompile:
    """See Contestant. Compiles in the warm-up: one graph for the prompt's length, one for a single token."""

    def __init__(self, setup: Setup) -> None:
        self._model = load_model(setup)
        self.memory = memory_of(setup)
        mode = _MODES[device_of(setup).type]
        self._forward = torch.compile(self._model, mode=mode, dynamic=False)
        self._cache = StaticCache(config=self._model.config, max_cache_len=setup.prompt_len + setup.new_tokens)
        with torch.inference_mode():
            # A cache makes its tensors when it is first written: made in a graph they would be gone with it.
            self._model(torch.zeros(1, 1, dtype=torch.int64, device=device_of(setup)), past_key_values=self._cache)
        self.options: Mapping[str, str] = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": "sdpa",
            "cache": f"StaticCache of {setup.prompt_len + setup.new_tokens}",
            "mode": mode,
            "dynamic": "False",
        }

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """See Contestant."""
        with torch.inference_mode():  # in which its tensors were made
            self._cache.reset()
        return greedy(self._forward, self._model, self._cache, prompt, new_tokens)
