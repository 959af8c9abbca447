"""What processor and how much memory this process has."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Processor:
    """``cores`` this process may use; ``memory_bytes`` of the machine (None where the system does not say)."""

    name: str
    cores: int
    memory_bytes: int | None

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.name}, {self.cores} {'core' if self.cores == 1 else 'cores'}{memory}"


def processor() -> Processor:
    """This machine's."""
    return Processor(_name(), cores(), _memory_bytes())


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name() -> str:
    names = _fields(Path("/proc/cpuinfo"), ":")
    return names.get("model name") or platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    total = _fields(Path("/proc/meminfo"), ":").get("MemTotal")
    return None if total is None else int(total.split()[0]) * 1024


def last_level_cache_bytes() -> int:
    """The largest cache of the first core; 32 MiB where the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes)


def _fields(path: Path, separator: str) -> dict[str, str]:
    """The first value of each "name: value" line; empty where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(separator)
        fields.setdefault(name.strip(), value.strip())
    return fields
