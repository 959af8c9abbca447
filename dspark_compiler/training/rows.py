"""Training rows of all layers on disk: more than fits in memory, read a layer at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Tokens as one layer sees them: hidden [N,K] and target [N,G], float32."""

    hidden: Tensor
    target: Tensor

    def split(self, first: int) -> tuple["Rows", "Rows"]:
        """The first rows and the others."""
        return Rows(self.hidden[:first], self.target[:first]), Rows(self.hidden[first:], self.target[first:])


class RowStore:
    """Hidden states as float16 in a file, layer after layer; targets, which are few, in memory."""

    def __init__(self, file: Path, layers: int, rows: int, hidden_size: int, kv_heads: int) -> None:
        self.layers = layers
        self.kv_heads = kv_heads
        self._hidden = np.memmap(file, np.float16, "w+", shape=(layers, rows, hidden_size))
        self._target = torch.empty(layers, rows, kv_heads)

    def put(self, first: int, layer: int, hidden: Tensor, target: Tensor) -> None:
        """From row ``first`` on, the rows hidden [T,K] and target [T,G] of one layer."""
        rows = slice(first, first + len(hidden))
        self._hidden[layer, rows] = hidden.half().numpy()
        self._target[layer, rows] = target

    def layer(self, layer: int) -> Rows:
        """All rows of one layer."""
        return Rows(torch.from_numpy(self._hidden[layer].astype(np.float32)), self._target[layer])
