"""Times by the GPU's own clock."""

import statistics
from collections.abc import Callable

from dspark_compiler.runtime.calls import Call
from dspark_compiler.runtime.gpu_device import GpuDevice


class GpuClock:
    """Times what is put on a device's stream."""

    def __init__(self, device: GpuDevice) -> None:
        self._device = device
        self._began, self._ended = (device.cuda.event(timed=True) for _ in range(2))

    def seconds(self, work: Callable[[], object]) -> float:
        """Time between what was on the stream before and the end of ``work``."""
        cuda, stream = self._device.cuda, self._device.stream
        cuda.record(self._began, stream)
        work()
        cuda.record(self._ended, stream)
        cuda.wait(self._ended)
        return cuda.seconds(self._began, self._ended)

    def replay(self, call: Call, times: int = 20) -> float:
        """Median of a call's run with what its last one was given."""
        call.again()
        return statistics.median(self.seconds(call.again) for _ in range(times))
