"""Kernels with a thread for each element of an index space: copies, gathers, whatever one expression says."""

import math
from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.threads import launch
from dspark_compiler.schedules.tir import Expr, when

# ``each`` with as many threads a group as suit a family of GPUs.
Each = Callable[[Sequence[int], Callable[..., None]], None]


def each(shape: Sequence[int], emit: Callable[..., None], *, threads: int) -> None:
    """Launches a thread for every index of ``shape``, neighbours along the last axis, and has it do emit(*index)."""
    size = math.prod(shape)
    with launch((-(-size // threads),), threads) as (group, thread):
        flat = T.Bind(group * threads + thread)
        with when(flat < size):
            index: list[Expr] = []
            rest = flat
            for extent in reversed(shape):
                index.insert(0, T.Bind(rest % extent))
                rest = rest // extent
            emit(*index)
