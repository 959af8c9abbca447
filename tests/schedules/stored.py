"""Rows of keys or values as a cache stores them, for the operators and for the kernels."""

import numpy as np
import torch

from dspark_compiler.graph.reference import quantized
from dspark_compiler.schedules.cache_storage import E4M3FN, FLOAT32, INT8, Storage

STORAGES = [FLOAT32, INT8, E4M3FN]
_TYPES = {INT8: torch.int8, E4M3FN: torch.float8_e4m3fn}


def stored(rows: np.ndarray, storage: Storage) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows [B,G,C,D] in a cache's type, and their scales [B,G,C] if it has any."""
    tensor = torch.from_numpy(rows)
    return quantized(tensor, _TYPES[storage]) if storage.scaled else (tensor, None)


def kernel_array(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as kernels see it: numpy has no e4m3, so its bits."""
    return (tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor).numpy().copy()


def scales(scale: torch.Tensor | None) -> list[np.ndarray]:
    """The argument of scales, if there is one."""
    return [] if scale is None else [scale.numpy().copy()]
