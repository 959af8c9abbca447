"""How a target wants weights and states to lie in memory."""

from typing import Protocol

import numpy as np

from dspark_compiler.schedules.attention_shape import key_cache_shape
from dspark_compiler.schedules.gated_linear import can_gate
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import packed_shape

# A stored type, as compiled functions for the CPU receive it: bfloat16 travels as the upper half of a float32's bits.
_CPU_DTYPE = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


class Layouts(Protocol):
    """The physical side of a target, as far as it can be told without a program."""

    @property
    def widens(self) -> bool:
        """Whether kernels read bfloat16 where float32 is asked for; nothing is lost where it holds every value."""

    def packed_shape(self, features: int, depth: int) -> tuple[int, ...]:
        """Shape of a weight [features, depth] of a linear after packing."""

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """W [N, K] packed; each of W [E, N, K] likewise."""

    def can_gate(self, features: int) -> bool:
        """Whether the two halves of a gated weight, so many rows each, meet in the packed form."""

    def weight_dtype(self, store: str) -> str:
        """What compiled functions call the type of a weight stored as ``store``."""

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a state that the program calls ``name``, with this shape and type."""


class PanelLayouts:
    """The CPU's: panels of weights (linear.py), keys in panels of one vector's slots (attention.py)."""

    widens = True

    def __init__(self, isa: VectorIsa) -> None:
        self.isa = isa

    def packed_shape(self, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts."""
        return packed_shape(features, depth, self.isa)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """W [N, K] -> [ceil(N/P), K, P], zeros where the last panel reaches past N; each of W [E, N, K] likewise."""
        if weight.ndim == 3:
            return np.stack([self.pack(expert) for expert in weight])
        features, depth = weight.shape
        panels, _, width = packed_shape(features, depth, self.isa)
        if panels * width != features:
            weight = np.concatenate([weight, np.zeros((panels * width - features, depth), weight.dtype)])
        return np.ascontiguousarray(weight.reshape(panels, width, depth).swapaxes(1, 2))

    def can_gate(self, features: int) -> bool:
        """See Layouts."""
        return can_gate(features, self.isa)

    def weight_dtype(self, store: str) -> str:
        """See Layouts."""
        return _CPU_DTYPE[store]

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        if name.startswith("k_cache."):
            batch, kv_heads, slots, dim = shape
            return key_cache_shape(batch, kv_heads, slots, dim, self.isa), dtype
        return shape, dtype
