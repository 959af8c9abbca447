"""What a packed linear kernel multiplies by: panels of plain weights, or of codes with scales (quantized_panels.py)."""

from collections.abc import Sequence
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import LinearWorkload, packed_shape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, prefetch, vector
from dspark_compiler.schedules.vector_math import load_weight


class WeightPanels(Protocol):
    """A packed weight as kernels read it."""

    @property
    def args(self) -> list[Arg]:
        """The arguments it takes."""

    def prepare(self, x: Buffer) -> Sequence[Buffer]:
        """Emits what is worked out once a call, and returns where it is; in front of the parallel loop."""

    def accumulate(
        self,
        sums: Sequence[Sequence[Buffer]],
        x: Buffer,
        weight: Sequence[Buffer],
        panels: Sequence[Expr],
        first: Expr,
        ahead: int,
    ) -> None:
        """Emits sums[p][i][:] = sum over k of x[first+i, k] * W[panels[p], k, :], all sums held in registers.

        ``weight`` holds the buffers of ``args``, then those that ``prepare`` returned; weights are asked for ``ahead``
        steps of k ahead.
        """


class PlainPanels:
    """Weights of a floating-point type, a panel of them [K, P] at a time."""

    def __init__(self, work: LinearWorkload, isa: VectorIsa) -> None:
        self._work, self._isa = work, isa

    @property
    def args(self) -> list[Arg]:
        """See WeightPanels."""
        return [Arg("w", packed_shape(self._work.features, self._work.depth, self._isa), self._work.weight_dtype)]

    def prepare(self, x: Buffer) -> Sequence[Buffer]:
        """Nothing."""
        return ()

    def accumulate(
        self,
        sums: Sequence[Sequence[Buffer]],
        x: Buffer,
        weight: Sequence[Buffer],
        panels: Sequence[Expr],
        first: Expr,
        ahead: int,
    ) -> None:
        """See WeightPanels."""
        (w,) = weight
        clear(sums, self._isa)
        with T.serial(0, self._work.depth) as k:
            for panel, column in zip(panels, sums, strict=True):
                if ahead:
                    # Past the weight's end a prefetch does nothing.
                    prefetch(w, (panel, k + ahead, 0), self._isa.panel)
                for i, acc in enumerate(column):
                    with vector(self._isa.panel) as lane:
                        T.buffer_store(acc, acc[lane] + x[first + i, k] * load_weight(w, [panel, k, lane]), [lane])


def clear(sums: Sequence[Sequence[Buffer]], isa: VectorIsa) -> None:
    """Emits sums = 0."""
    for acc in (acc for column in sums for acc in column):
        with vector(isa.panel) as lane:
            T.buffer_store(acc, T.float32(0.0), [lane])
