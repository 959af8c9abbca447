"""How fast this machine's cores together read memory: the limit of decoding one sequence."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dspark_compiler.machine.processor import cores, last_level_cache_bytes

_CACHES = 8  # times the last-level cache, so that next to nothing is read from it
_LEAST_BYTES = 256 << 20
_MOST_BYTES = 4 << 30


class ReadBandwidth:
    """A buffer far larger than the caches, in huge pages where there are any, read by all cores at once.

    The best of a few reads counts, which leaves out disturbances; over several calls, in turns with other work, the
    median of these. A shared machine's bandwidth drifts by a third, and a limit from its best moment would be no limit
    for what ran at another.
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

    def measure(self, times: int = 5) -> float:
        """Reads the buffer so many times; returns the median of this round and all before, in bytes a second."""
        best = 0.0
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(np.size, self._parts))  # the threads exist before the clock runs
            for _ in range(times):
                began = time.perf_counter()
                # numpy lets go of the interpreter lock, and its integer maximum reads with several vector registers.
                list(pool.map(np.max, self._parts))
                best = max(best, self._bytes / (time.perf_counter() - began))
        self._rounds.append(best)
        return self.bytes_per_second
