"""Grids, their arrays and barriers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Buffer


@contextmanager
def launch(grid: Sequence[int], threads: int) -> Iterator[tuple[Any, ...]]:
    """Emits one kernel launch; yields the indices of the group of ``threads``, x first, and of the thread in it.

    A function may launch several kernels, one after the other.
    """
    with ExitStack() as stack:
        axes = [
            stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
            for axis, extent in zip("xyz", grid, strict=False)
        ]
        yield (*axes, stack.enter_context(T.launch_thread("threadIdx.x", threads)))


def array(shape: int | tuple[int, ...], dtype: str, scope: str) -> Buffer:
    """An array of a thread's ("local") or of a group's ("shared")."""
    return T.alloc_buffer(shape if isinstance(shape, tuple) else (shape,), dtype, scope=scope)


def barrier() -> None:
    """All threads of a group get here before one goes on, and see what was written."""
    T.evaluate(T.tvm_storage_sync("shared"))
