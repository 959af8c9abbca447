"""How weights and states lie in an Nvidia GPU's memory."""

import numpy as np

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape, pack_fragments
from dspark_compiler.schedules.cuda.quantized_fragments import (
    group_shape,
    pack_bytes,
    pack_groups,
    pack_nibbles,
    quantized_shape,
    tile_group,
)

# What kernels call codes.
STORED = {"int8": "int8", "int4": "int4", "float8_e4m3": "float8_e4m3fn"}
_CACHES = ("k_cache.", "v_cache.", "k_scratch.", "v_scratch.")


class FragmentLayouts:
    """Tiles of weights (fragments.py); caches row-major in the type that is computed with."""

    widens = False

    def __init__(self, dtype: str, arch: str) -> None:
        self.dtype, self.arch = dtype, arch

    def packed_shape(self, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts."""
        return fragment_shape(features, depth)

    def experts_shape(self, experts: int, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts: as they are, each is read by few rows."""
        return (experts, features, depth)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """See Layouts."""
        return weight if weight.ndim == 3 else pack_fragments(weight)

    def codes(self, form: WeightFormat, features: int, depth: int) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        return quantized_shape(features, depth, STORED[form.codes]), "uint8"

    def pack_codes(self, form: WeightFormat, codes: np.ndarray) -> np.ndarray:
        """See Layouts."""
        return pack_nibbles(codes) if form.codes == "int4" else pack_bytes(codes)

    def factors(self, form: WeightFormat, features: int, groups: int, exact: bool) -> tuple[tuple[int, ...], str]:
        """See Layouts: scales of rows are float32, those of groups float16 in pairs."""
        if form.group:
            stored, depth = STORED[form.codes], groups * form.group
            return group_shape(features, depth, stored, _tile_group(stored, form.group, depth)), "uint32"
        return (features,), "float32"

    def pack_factors(self, form: WeightFormat, factors: np.ndarray, exact: bool) -> np.ndarray:
        """See Layouts."""
        if not form.group:
            return factors[:, 0].copy()
        features, groups = factors.shape
        stored, depth = STORED[form.codes], groups * form.group
        group = _tile_group(stored, form.group, depth)
        return pack_groups(factors, group_shape(features, depth, stored, group), -(-form.group // group))

    def can_gate(self, features: int) -> bool:
        """See Layouts."""
        return features % TILE_ROWS == 0

    def weight_dtype(self, store: str) -> str:
        """See Layouts."""
        return store

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        return shape, self.dtype if name.startswith(_CACHES) and dtype == "float32" else dtype


def _tile_group(stored: str, columns: int, depth: int) -> int:
    group = tile_group(stored, columns, depth)
    assert group is not None, "other formats are not kept (quantization/targets.py)"
    return group
