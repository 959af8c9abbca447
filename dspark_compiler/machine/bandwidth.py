"""How fast this machine's cores together read memory: the limit of decoding one sequence."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dspark_compiler.machine.processor import cores, last_level_cache_bytes

_CACHES = 8  # times the last-level cache, so that next to nothing is read from it
_LEAST_BYTES = 256 << 20
_MOST_BYTES = 4 << 30


class ReadBandwidth:
    """A buffer far larger than the caches, read by all cores at once; the best measurement so far counts.

    Measuring between other work, several times, makes the best one meet a moment without disturbance.
    """

    def __init__(self, threads: int | None = None, buffer_bytes: int | None = None) -> None:
        self._threads = threads or cores()
        size = buffer_bytes or min(max(_LEAST_BYTES, _CACHES * last_level_cache_bytes()), _MOST_BYTES)
        # Written once: pages never touched would all be the one zero page.
        self._parts = np.array_split(np.ones(size // 8, np.int64), self._threads)
        self._bytes = sum(part.nbytes for part in self._parts)
        self.best = 0.0

    def measure(self, times: int = 3) -> float:
        """Reads the buffer so many times; returns the best of all measurements yet, in bytes a second."""
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(np.size, self._parts))  # the threads exist before the clock runs
            for _ in range(times):
                began = time.perf_counter()
                # numpy lets go of the interpreter lock, and its integer maximum reads with several vector registers.
                list(pool.map(np.max, self._parts))
                self.best = max(self.best, self._bytes / (time.perf_counter() - began))
        return self.best
