"""Loops that CUDA's compiler unrolls."""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Expr


@contextmanager
def unrolled(extent: int) -> Iterator[Expr]:
    """A loop whose index may pick registers; TVM would write all its iterations out before it works on them."""
    with T.unroll(0, extent, annotations={"pragma_unroll_explicit": False}) as i:
        yield i
