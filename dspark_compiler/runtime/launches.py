"""What is on its way to the GPU: inputs, captured calls and what is fetched; what is made together goes at once."""

from collections.abc import Callable
from dataclasses import dataclass

from dspark_compiler.runtime.gpu import Batch, Transfer


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph, and the context's epoch in which what it needs in between may be written."""

    handle: int
    epoch: int


@dataclass(frozen=True)
class Launch:
    """A captured call that can run; ``put`` puts its kernels on the stream one by one, to be captured again."""

    captured: Captured
    put: Callable[[], None]


class Launches:
    """What was asked for and is not on the stream yet, where calls are made ``with`` this.

    Calls that follow each other are captured once more as one graph, so that nothing lies between them. Their inputs go
    before all of them, and what is fetched behind: none of them may overwrite what it reads, so none is there twice.
    """

    def __init__(self, join: Callable[[list[Launch]], Captured], run: Callable[[Batch], None]) -> None:
        """``join`` makes one graph of several calls; ``run`` puts a batch on the stream."""
        self._join, self._run = join, run
        self._open = False
        self._waiting: dict[Captured, Launch] = {}
        self._batch = Batch()
        self._joined: dict[tuple[Captured, ...], Captured] = {}

    def __enter__(self) -> None:
        """Calls made from now on are launched at the end, or as soon as somebody waits for one of them."""
        self._open = True

    def __exit__(self, *_: object) -> None:
        self._open = False
        self.flush()

    def send(self, copy: Transfer, sent: int) -> None:
        """Copies inputs of the next call; it sees to it that no call waits that would read them, too."""
        if any(copy.to == other.to for other in self._batch.before):
            self.flush()
        self._batch.before.append(copy)
        self._batch.events.append(sent)

    def put(self, launch: Launch) -> None:
        """Launches a call, now or with those that follow."""
        if self.has(launch.captured):
            self.flush()
        self._waiting[launch.captured] = launch
        if not self._open:
            self.flush()

    def fetch(self, copies: list[Transfer], filled: int) -> None:
        """Copies what the calls made so far have made."""
        self._batch.after += copies
        self._batch.events.append(filled)
        if not self._waiting:
            self.flush()

    def has(self, captured: Captured | None) -> bool:
        """Whether a call waits to be launched."""
        return captured in self._waiting

    def flush(self) -> None:
        """Puts everything on the stream."""
        if not self._waiting and not self._batch.events:
            return
        waiting, batch = [*self._waiting.values()], self._batch
        self._waiting, self._batch = {}, Batch()
        if waiting:
            batch.graph = (waiting[0].captured if len(waiting) == 1 else self._one(waiting)).handle
        self._run(batch)

    def _one(self, waiting: list[Launch]) -> Captured:
        key = tuple(launch.captured for launch in waiting)
        found = self._joined.get(key)
        if found is None or found.epoch != key[0].epoch:
            # What was captured before memory was taken back is of no use any more.
            self._joined = {calls: graph for calls, graph in self._joined.items() if graph.epoch == key[0].epoch}
            found = self._joined[key] = self._join(waiting)
        return found
