"""Timing kernels on this machine as a model would run them: weights out of memory, activations out of cache."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

_FALLBACK_CACHE = 32 << 20  # bytes, where the system does not tell the size of its last-level cache
_LEAST_ROUNDS, _CALLS = 4, 8

Kernel = Callable[..., Any]
Arguments = list[Any]  # tvm tensors in calling order, outputs last


def compile_kernel(function: tvm.tirx.PrimFunc, target: Any) -> Kernel:
    """Machine code of one scheduled function.

    Raises:
        RuntimeError, ValueError: TVM refuses the function.
    """
    kernel: Kernel = tvm.tirx.build(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target=target)[
        "main"
    ]
    return kernel


def random_arrays(function: tvm.tirx.PrimFunc, seed: int = 0) -> list[np.ndarray]:
    """An array for each argument.

    Floats are in [0.5, 1.5) times a random sign, bfloat16 bits likewise; integers are 0, an index into anything.
    """
    rng = np.random.default_rng(seed)
    return [_random_array(param, rng) for param in function.params]


def sets_to_rotate(cold_bytes: int) -> int:
    """How many sets of arguments, each with its own ``cold_bytes``, push each other out of the cache."""
    # A set larger than the cache by itself evicts what it read before.
    enough = 2 * last_level_cache()
    return 1 if cold_bytes == 0 or cold_bytes > enough else -(-enough // cold_bytes) + 1


def time_kernels(kernels: Sequence[Kernel], arguments: Sequence[Arguments], seconds: float) -> list[float]:
    """Microseconds a call of each kernel, the minimum over rounds in which they take turns: a busy moment hits all.

    Args:
        kernels: each takes any of ``arguments``.
        arguments: rotated through.
        seconds: time to spend in all; at least a few rounds are made.
    """
    best = [float("inf")] * len(kernels)
    position, rounds, end = 0, 0, time.perf_counter() + seconds
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        for i, kernel in enumerate(kernels):
            batch = [arguments[(position + n) % len(arguments)] for n in range(_CALLS)]
            position += _CALLS
            began = time.perf_counter()
            for args in batch:
                kernel(*args)
            best[i] = min(best[i], (time.perf_counter() - began) / _CALLS)
        rounds += 1
    return [value * 1e6 for value in best]


def last_level_cache() -> int:
    """Bytes of this machine's last-level cache."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        digits = text.rstrip("KM")
        if digits.isdigit():
            sizes.append(int(digits) * unit)
    return max(sizes, default=_FALLBACK_CACHE)


def _random_array(param: Any, rng: np.random.Generator) -> np.ndarray:
    shape = [int(extent) for extent in param.shape]
    dtype = str(param.dtype)
    if dtype not in ("float32", "float64", "float16", "uint16"):
        return np.zeros(shape, dtype)
    values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values *= np.where(rng.random(shape) < 0.5, np.float32(-1), np.float32(1))
    if dtype == "uint16":
        bits: np.ndarray = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits
    return values.astype(dtype)
