"""What running on a GPU asks of an interface to it: memory, one stream, marks on it, recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Where rows of equal length lie: ``pitch`` bytes from the start of one to the start of the next."""

    address: int
    pitch: int


class Transfer(NamedTuple):
    """So many bytes from one address to another."""

    to: int
    source: int
    size: int


@dataclass
class Batch:
    """What is put on a stream at once.

    Attributes:
        before: copies that a graph's kernels read.
        graph: None for none.
        after: copies of what they made; neither these nor those before write what others of them read or write.
        events: put behind it all.
    """

    before: list[Transfer] = field(default_factory=list)
    graph: int | None = None
    after: list[Transfer] = field(default_factory=list)
    events: list[int] = field(default_factory=list)


class GpuRuntime(Protocol):
    """Pointers, streams, events and graphs are integers. What is put on a stream is done in that order, and later.

    Raises:
        DeviceError: from every method, naming what failed and why.
    """

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory that are free, and all of them."""

    def allocate(self, size: int) -> int:
        """Memory on the GPU, at a multiple of 256."""

    def release(self, address: int) -> None:
        """Gives memory on the GPU back."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Zeroed memory of the host that the GPU reads and writes by itself."""

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies bytes, whichever side each address is on."""

    def copy_all(self, copies: Sequence[Transfer], stream: int) -> None:
        """Several copies, none of which reads or writes what another one writes."""

    def copy_rows(self, to: Rows, source: Rows, row: int, rows: int, stream: int) -> None:
        """Copies so many rows of ``row`` bytes."""

    def zero(self, address: int, size: int, stream: int) -> None:
        """Zeroes memory on the GPU."""

    def stream(self) -> int:
        """A stream that waits for no other."""

    def synchronize(self, stream: int) -> None:
        """Waits until all that is on the stream is done."""

    def event(self, *, timed: bool = False) -> int:
        """A mark to be put on streams; before that, nothing waits for it."""

    def record(self, event: int, stream: int) -> None:
        """Puts the event on the stream."""

    def wait(self, event: int) -> None:
        """Waits until the stream has come to where the event was put last."""

    def seconds(self, first: int, last: int) -> float:
        """Time between two events that have come to pass, both timed."""

    def begin_capture(self, stream: int) -> None:
        """From now on what is put on the stream is remembered instead of done."""

    def end_capture(self, stream: int) -> int:
        """What was remembered, as a graph that can be launched."""

    def abandon_capture(self, stream: int) -> None:
        """Ends a capture that failed; the stream can be used again."""

    def launch(self, graph: int, stream: int) -> None:
        """Puts all of a graph on the stream."""

    def run(self, batch: Batch, stream: int) -> None:
        """Puts a batch on the stream."""

    def destroy(self, graph: int) -> None:
        """Gives a graph's memory back; what was launched of it still ends."""


def run_in_turn(cuda: GpuRuntime, batch: Batch, stream: int) -> None:
    """Puts a batch on the stream piece by piece, where an interface has nothing that takes it as one."""
    cuda.copy_all(batch.before, stream)
    if batch.graph is not None:
        cuda.launch(batch.graph, stream)
    cuda.copy_all(batch.after, stream)
    for event in batch.events:
        cuda.record(event, stream)
