"""Kernels with a thread for each element of an index space: copies, gathers, whatever one expression says."""

import math
from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import launch
from dspark_compiler.schedules.tir import Expr, when

_THREADS = 128


def each(shape: Sequence[int], emit: Callable[..., None]) -> None:
    """Launches a thread for every index of ``shape``, neighbours along the last axis, and has it do emit(*index)."""
    size = math.prod(shape)
    with launch((-(-size // _THREADS),), _THREADS) as (group, thread):
        flat = T.Bind(group * _THREADS + thread)
        with when(flat < size):
            index: list[Expr] = []
            rest = flat
            for extent in reversed(shape):
                index.insert(0, T.Bind(rest % extent))
                rest = rest // extent
            emit(*index)
