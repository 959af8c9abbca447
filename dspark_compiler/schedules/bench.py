"""What tuning measures on: kernels are compiled, given the same arguments, and timed against each other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import tvm
from numpy.typing import NDArray

Build = Callable[[], tvm.tirx.PrimFunc]


@dataclass(frozen=True)
class Operand:
    """What a kernel reads: ``values``, repeated along the first axis until they fill ``shape``.

    Cold ones come from memory at each call, as weights do; the others stay where the last call left them.
    """

    values: NDArray[Any]
    shape: tuple[int, ...]
    cold: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * self.values.itemsize


@dataclass(frozen=True)
class Sample:
    """Arguments of a kernel, the output last, and what it must make of them."""

    operands: tuple[Operand, ...]
    expected: NDArray[np.float64]
    dtype: str  # of the output
    tolerance: float  # of the output's largest number

    def holds(self, found: NDArray[Any]) -> bool:
        """Whether every number of an output is right."""
        error = np.abs(found.astype(np.float64) - self.expected).max()
        return bool(error <= self.tolerance * np.abs(self.expected).max())


@dataclass(frozen=True)
class Run:
    """How a kernel did: its output and microseconds a call, or why there are none."""

    output: NDArray[Any] | None = None
    microseconds: float = math.inf
    failure: str | None = None


class Bench(Protocol):
    """A device that runs kernels; a context that ends what works for it."""

    def prepare(self, builds: Sequence[Build]) -> Any:
        """Kernels that will be compared; they may be compiled from now on."""

    def compare(self, prepared: Any, sample: Sample) -> list[Run]:
        """Runs each kernel once on the sample, then those that work in turns; a kernel that fails stops no other."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def gated(product: NDArray[np.float64]) -> NDArray[np.float64]:
    """The silu of the first half of the columns times the second, what gated kernels are tuned with."""
    gate, up = np.split(product, 2, axis=1)
    result: NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up
    return result
