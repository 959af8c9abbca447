"""How busy other programs keep the processor while we do nothing."""

import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = slice(3, 5)  # idle and waiting for disks, of user, nice, system, idle, iowait, irq, softirq, steal


class RestWatch:
    """Pauses, and counts the cores that were busy meanwhile."""

    def __init__(self) -> None:
        self._busy = 0.0
        self._total = 0.0
        self._cores = 1

    def pause(self, seconds: float) -> None:
        """Sleeps; this process and its children are expected to rest too."""
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
        if before is not None and after is not None:
            self._cores = after[2]
            self._busy += after[0] - before[0]
            self._total += after[1] - before[1]

    @property
    def busy_cores(self) -> float:
        """The mean number of cores that were busy during all pauses; 0 where the system does not say."""
        return self._busy / self._total * self._cores if self._total else 0.0


def _ticks() -> tuple[float, float, int] | None:
    """Busy ticks and all ticks of all cores since the start of the machine, and the number of cores."""
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines() if line.startswith("cpu")]
    except OSError:
        return None
    ticks = [float(value) for value in lines[0][1:9]]
    return sum(ticks) - sum(ticks[_IDLE]), sum(ticks), len(lines) - 1
