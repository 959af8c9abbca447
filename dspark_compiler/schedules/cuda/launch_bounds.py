"""What a launch promises the compiler about the blocks that share a multiprocessor."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm.tirx.script.builder import ir as T


def resident_blocks(count: int) -> AbstractContextManager[Any]:
    """Inside ``launch``: registers are given out so that ``count`` blocks fit on a multiprocessor at once."""
    if count == 1:
        return nullcontext()
    return T.attr({"tirx.launch_bounds_min_blocks_per_sm": count})  # type: ignore[no-any-return]


def bounded_registers() -> AbstractContextManager[Any]:
    """Inside ``launch``: the registers a thread starts with are bounded, as wgmma.py's ``set_registers`` wants it."""
    return T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})  # type: ignore[no-any-return]
