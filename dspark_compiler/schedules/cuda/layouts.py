"""How weights and states lie in an Nvidia GPU's memory."""

import numpy as np

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape, pack_fragments

_CACHES = ("k_cache.", "v_cache.", "k_scratch.", "v_scratch.")


class FragmentLayouts:
    """Tiles of weights (fragments.py); caches row-major in the type that is computed with."""

    widens = False

    def __init__(self, dtype: str, arch: str) -> None:
        self.dtype, self.arch = dtype, arch

    def packed_shape(self, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts."""
        return fragment_shape(features, depth)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """See Layouts."""
        if weight.ndim == 3:
            return np.stack([pack_fragments(expert) for expert in weight])
        return pack_fragments(weight)

    def can_gate(self, features: int) -> bool:
        """See Layouts."""
        return features % TILE_ROWS == 0

    def weight_dtype(self, store: str) -> str:
        """See Layouts."""
        return store

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        return shape, self.dtype if name.startswith(_CACHES) and dtype == "float32" else dtype
