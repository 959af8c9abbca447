"""Where a contestant's memory is counted: that of the host's process, or the GPU's."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dspark_compiler.runtime.memory import peak_memory_bytes


def _forget_resident() -> None:
    """Lets the peak of resident memory start again from what is resident now, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Memory:
    """``peak_bytes`` since ``forget`` was called last."""

    peak_bytes: Callable[[], int]
    forget: Callable[[], None]


def host_memory() -> Memory:
    """What is resident of this process."""
    return Memory(peak_memory_bytes, _forget_resident)


def torch_memory() -> Memory:
    """What torch has taken of the GPU, with what its allocator keeps for later."""
    import torch

    return Memory(torch.cuda.max_memory_reserved, torch.cuda.reset_peak_memory_stats)
