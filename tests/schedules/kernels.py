"""Compiles kernels for the vectors this machine has, and calls them on numpy arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from dspark_compiler.backends.cpu import CpuBackend, host_flags
from dspark_compiler.schedules.isa import AVX2, AVX512, NEON, SSE, VectorIsa
from dspark_compiler.schedules.measure import compile_kernel

_FLAG = {"sse4_2": (SSE, "x86-64-v2"), "avx2": (AVX2, "x86-64-v3"), "avx512f": (AVX512, "x86-64-v4")}


def machines() -> dict[VectorIsa, Any]:
    """Vectors that can run here, narrowest first, with a target that has them."""
    found = {isa: CpuBackend(level).target for flag, (isa, level) in _FLAG.items() if flag in host_flags()}
    return found or {NEON: CpuBackend(None).target}


MACHINES = machines()
WIDEST = list(MACHINES)[-1]


def build(function: tvm.tirx.PrimFunc, isa: VectorIsa = WIDEST) -> Callable[..., None]:
    """A function over numpy arrays; what the kernel writes is copied back."""
    compiled = compile_kernel(function, MACHINES[isa])

    def call(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        compiled(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if array.flags.writeable:
                array[...] = tensor.numpy()

    return call


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Reproducible float32 normals."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Float32 cut to bfloat16, as the uint16 a kernel reads."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
