"""A function of token ids as CUDA graphs, where launching what it does takes longer than doing it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor], tuple[Tensor, ...]]
_EAGER = 2  # calls of a shape before one is captured: they warm up what is loaded or tuned at the first


class CapturedRead:
    """``read`` of ids, captured for each shape that comes again; what a call gives holds until the next one.

    ``obstacle`` says why calls are not captured, if that was tried.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._seen: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}
        self._pool: Any = None
        self.obstacle: str | None = None

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        """See ``read``; ids on a GPU."""
        shape = ids.shape
        self._seen[shape] += 1
        if shape not in self._graphs and (self.obstacle or self._seen[shape] <= _EAGER or not self._capture(ids)):
            return self._read(ids)
        graph, given, found = self._graphs[shape]
        given.copy_(ids)
        graph.replay()
        return found

    def _capture(self, ids: Tensor) -> bool:
        """Whether it could be done."""
        given, graph = ids.clone(), torch.cuda.CUDAGraph()
        try:
            # Graphs share memory: none of them has to keep what another one left.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                found = self._read(given)
        except RuntimeError as error:
            self.obstacle = str(error).splitlines()[0]
            return False
        self._pool = graph.pool()
        self._graphs[ids.shape] = (graph, given, found)
        return True
