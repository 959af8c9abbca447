"""Captured calls on their way to the GPU: one by one, or several that are made together as one graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph, and the context's epoch in which what it needs in between may be written."""

    handle: int
    epoch: int


@dataclass(frozen=True)
class Launch:
    """A captured call that is to run; ``put`` puts its kernels on the stream one by one, to be captured again."""

    captured: Captured
    put: Callable[[], None]


class Launches:
    """What was asked for and is not on the stream yet, where calls are made ``together``.

    Calls that follow each other are captured once more as one graph, so that nothing lies between them. What is to be
    done after a call is done after all of them: none of them may overwrite what it reads, so none is there twice.
    """

    def __init__(self, join: Callable[[list[Launch]], Captured], launch: Callable[[Captured], None]) -> None:
        """``join`` makes one graph of several calls; ``launch`` puts one on the stream."""
        self._join, self._launch = join, launch
        self._open = False
        self._waiting: list[Launch] = []
        self._afterwards: list[Callable[[], None]] = []
        self._joined: dict[tuple[Captured, ...], Captured] = {}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Calls made inside are launched at its end, or as soon as somebody waits for one of them."""
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self.flush()

    def put(self, launch: Launch) -> None:
        """Launches a call, now or with those that follow."""
        if self.has(launch.captured):
            self.flush()
        self._waiting.append(launch)
        if not self._open:
            self.flush()

    def after(self, work: Callable[[], None]) -> None:
        """Does what belongs behind all calls made so far."""
        if self._waiting:
            self._afterwards.append(work)
        else:
            work()

    def has(self, captured: Captured | None) -> bool:
        """Whether a call waits to be launched."""
        return any(launch.captured is captured for launch in self._waiting)

    def flush(self) -> None:
        """Puts everything on the stream."""
        waiting, afterwards = self._waiting, self._afterwards
        self._waiting, self._afterwards = [], []
        if waiting:
            self._launch(waiting[0].captured if len(waiting) == 1 else self._one(waiting))
        for work in afterwards:
            work()

    def _one(self, waiting: list[Launch]) -> Captured:
        key = tuple(launch.captured for launch in waiting)
        found = self._joined.get(key)
        if found is None or found.epoch != key[0].epoch:
            # What was captured before memory was taken back is of no use any more.
            self._joined = {calls: graph for calls, graph in self._joined.items() if graph.epoch == key[0].epoch}
            found = self._joined[key] = self._join(waiting)
        return found
