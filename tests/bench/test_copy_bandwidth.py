"""How fast a GPU copies, by a clock that is known."""

from dspark_compiler.bench import copy_bandwidth
from dspark_compiler.bench.copy_bandwidth import CopyBandwidth


class Clock:
    """A GPU on which each copy takes a quarter of a second; the first round is cold and takes twice as long."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.copies = 0
        self.rounds = 0

    def stream(self) -> int:
        return 7

    def event(self, *, timed: bool) -> int:
        assert timed
        return 1

    def allocate(self, size: int) -> int:
        self.blocks.append(size)
        return len(self.blocks)

    def release(self, address: int) -> None:
        self.blocks.pop()

    def zero(self, address: int, size: int, stream: int) -> None:
        assert (address, size, stream) == (1, copy_bandwidth._BUFFER_BYTES, 7)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self.copies += 1

    def record(self, event: int, stream: int) -> None:
        pass

    def wait(self, event: int) -> None:
        self.rounds += 1

    def seconds(self, first: int, last: int) -> float:
        return 0.25 * copy_bandwidth._COPIES * (2 if self.rounds == 1 else 1)


def test_reads_and_writes_count_and_the_best_round_is_taken() -> None:
    clock = Clock()
    bandwidth = CopyBandwidth(clock)
    assert bandwidth.measure() == 2 * copy_bandwidth._BUFFER_BYTES / 0.25
    assert bandwidth.measure() == bandwidth.bytes_per_second
    assert not clock.blocks
    assert clock.copies == 6 * copy_bandwidth._COPIES
