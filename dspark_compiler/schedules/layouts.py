"""How a target wants weights and states to lie in memory."""

from typing import Protocol

import numpy as np

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.attention_shape import key_cache_shape
from dspark_compiler.schedules.gated_linear import can_gate
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import packed_shape
from dspark_compiler.schedules.quantized_codes import NIBBLES, pack_nibbles

# A stored type, as compiled functions for the CPU receive it: bfloat16 travels as the upper half of a float32's bits.
_CPU_DTYPE = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


class Layouts(Protocol):
    """The physical side of a target, as far as it can be told without a program."""

    @property
    def widens(self) -> bool:
        """Whether kernels read bfloat16 where float32 is asked for; nothing is lost where it holds every value."""

    def packed_shape(self, features: int, depth: int) -> tuple[int, ...]:
        """Shape of a weight [features, depth] of a linear after packing."""

    def experts_shape(self, experts: int, features: int, depth: int) -> tuple[int, ...]:
        """Shape of experts' weights [experts, features, depth] after packing."""

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """W [N, K] or experts' W [E, N, K] packed."""

    def codes(self, form: WeightFormat, features: int, depth: int) -> tuple[tuple[int, ...], str]:
        """Shape and type of the codes of a quantized weight [features, depth] after packing."""

    def pack_codes(self, form: WeightFormat, codes: np.ndarray) -> np.ndarray:
        """Codes [N, K] packed: int8, or bytes of e4m3 as uint8."""

    def factors(self, form: WeightFormat, features: int, groups: int, exact: bool) -> tuple[tuple[int, ...], str]:
        """Shape and type of scales or offsets [features, groups] after packing; ``exact`` if float16 holds them."""

    def pack_factors(self, form: WeightFormat, factors: np.ndarray, exact: bool) -> np.ndarray:
        """Scales or offsets float32 [N, G] packed."""

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

    def experts_shape(self, experts: int, features: int, depth: int) -> tuple[int, ...]:
        """See Layouts: packed one by one."""
        return (experts, *self.packed_shape(features, depth))

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """W [N, K] -> [ceil(N/P), K, P], zeros where the last panel reaches past N; each of W [E, N, K] likewise."""
        if weight.ndim == 3:
            return np.stack([self.pack(expert) for expert in weight])
        features, depth = weight.shape
        panels, _, width = packed_shape(features, depth, self.isa)
        if panels * width != features:
            weight = np.concatenate([weight, np.zeros((panels * width - features, depth), weight.dtype)])
        return np.ascontiguousarray(weight.reshape(panels, width, depth).swapaxes(1, 2))

    def codes(self, form: WeightFormat, features: int, depth: int) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        if form.codes == "int4":
            return packed_shape(features, depth // NIBBLES, self.isa), "uint32"
        return packed_shape(features, depth, self.isa), "int8" if form.codes == "int8" else "uint8"

    def pack_codes(self, form: WeightFormat, codes: np.ndarray) -> np.ndarray:
        """See Layouts."""
        panels = self.pack(codes)
        return pack_nibbles(panels) if form.codes == "int4" else panels

    def factors(self, form: WeightFormat, features: int, groups: int, exact: bool) -> tuple[tuple[int, ...], str]:
        """See Layouts."""
        return packed_shape(features, groups, self.isa), "float16" if exact else "float32"

    def pack_factors(self, form: WeightFormat, factors: np.ndarray, exact: bool) -> np.ndarray:
        """See Layouts."""
        return self.pack(factors.astype(np.float16 if exact else np.float32))

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
