"""How fast this machine's cores together read memory: the limit of decoding one sequence."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.machine.processor import cores, last_level_cache_bytes

_CACHES = 8  # times the last-level cache, so that next to nothing is read from it
_LEAST_BYTES = 256 << 20
_MOST_BYTES = 4 << 30


class ReadBandwidth:
    """A buffer far larger than the caches, in huge pages where there are any, read by all cores at once.

    A shared machine's bandwidth drifts, here between 30 and 50 GB/s within minutes, so a limit has to be measured next
    to what it limits: ``measure`` is for one moment, ``bytes_per_second`` the median of all.
    """

    def __init__(self, threads: int | None = None, buffer_bytes: int | None = None) -> None:
        self._threads = threads or cores()
        size = buffer_bytes or min(max(_LEAST_BYTES, _CACHES * last_level_cache_bytes()), _MOST_BYTES)
        # Written once: pages never touched would all be the one zero page.
        self._parts = np.array_split(np.ones(size // 8, np.int64), self._threads)
        self._bytes = sum(part.nbytes for part in self._parts)
        self._rounds: list[float] = []

    @property
    def bytes_per_second(self) -> float:
        """The median of all rounds."""
        return statistics.median(self._rounds)

    def measure(self, times: int = 3) -> float:
        """Reads the buffer so many times in each of two ways; returns the best, in bytes a second."""
        best = 0.0
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(np.size, self._parts))  # the threads exist before the clock runs
            for read in (_read_integers, _read_floats) * times:
                began = time.perf_counter()
                list(pool.map(read, self._parts))
                best = max(best, self._bytes / (time.perf_counter() - began))
        self._rounds.append(best)
        return best


# numpy lets go of the interpreter lock in both, and neither is always the faster: where memory is slow they are equal,
# where it is fast the second reaches what a matrix-vector product does.
def _read_integers(part: NDArray[np.int64]) -> object:
    return np.bitwise_or.reduce(part)


def _read_floats(part: NDArray[np.int64]) -> object:
    floats = part.view(np.float32)
    return np.dot(floats, floats)
