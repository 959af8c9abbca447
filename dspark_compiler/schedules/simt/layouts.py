"""How weights and states lie where kernels read them as they are: row by row, float16 in tiles (weights.py)."""

import numpy as np

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.simt.stored import STORED, elements_at_once
from dspark_compiler.schedules.simt.weights import WeightForm, pack_codes, pack_tiles

_MATRIX = 2  # dimensions
_CACHES = ("k_cache.", "v_cache.", "k_scratch.", "v_scratch.")


class RowLayouts:
    """Weights [N, K] with rows of whole accesses; caches row-major in the type weights are stored in."""

    widens = False

    def __init__(self, dtype: str) -> None:
        """``dtype`` is float32, float16 or bfloat16."""
        self.dtype = dtype

    def packed_shape(self, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts."""
        return (features, padded_depth(depth, STORED[self.dtype]))

    def experts_shape(self, experts: int, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts."""
        return (experts, *self.packed_shape(features, depth))

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """See Layouts: tiles, or zeros behind each row, up to a whole number of accesses."""
        features, depth = weight.shape[-2:]
        if weight.ndim == _MATRIX and WeightForm(features, depth, STORED[self.dtype]).tiled:
            return pack_tiles(weight)
        more = self.packed_shape(features, depth)[1] - depth
        return np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, more)]) if more else weight

    def codes(self, form: WeightFormat, features: int, depth: int) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        return WeightForm(features, depth, form.tag).args()[0].shape, "uint32"

    def pack_codes(self, form: WeightFormat, codes: np.ndarray) -> np.ndarray:
        """See Layouts."""
        return pack_codes(form, codes)

    def factors(self, form: WeightFormat, features: int, groups: int, exact: bool) -> tuple[tuple[int, ...], str]:
        """See Layouts: in two bytes where a group has its own and those hold it."""
        return (features, groups), "float16" if form.group and exact else "float32"

    def pack_factors(self, form: WeightFormat, factors: np.ndarray, exact: bool) -> np.ndarray:
        """See Layouts."""
        return factors.astype(np.float16) if form.group and exact else np.ascontiguousarray(factors)

    def can_gate(self, features: int) -> bool:
        """See Layouts: any two rows meet."""
        return True

    def weight_dtype(self, store: str) -> str:
        """See Layouts."""
        return STORED[store]

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        return shape, STORED[self.dtype] if name.startswith(_CACHES) and dtype == "float32" else dtype


def padded_depth(depth: int, dtype: str) -> int:
    """Elements of a weight's row as stored."""
    step = elements_at_once(dtype)
    return -(-depth // step) * step
