"""What everything that runs on an Nvidia GPU shares: one stream, and the account of memory."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu import GpuRuntime
from dspark_compiler.runtime.gpu_memory import Described, Slab
from dspark_compiler.runtime.lanes import lane_of
from dspark_compiler.runtime.launches import Captured, Launch, Launches
from dspark_compiler.runtime.library import import_tvm_ffi

FIRST_GPU = (2, 0)  # DLPack's type and number


class GpuContext:
    """One GPU as it is used here.

    Attributes:
        cuda: CUDA's runtime library, or another with the same methods.
        where: DLPack's type and number of the device.
        obstacle: why calls are not captured, None where they are.
        launches: captured calls on their way to the stream.
        used: bytes of the GPU's memory that were taken.
        largest: bytes that one allocation can have, None where that is all the memory there is.
    """

    largest: int | None = None
    apart = False
    """Whether what calls write is an allocation a tensor, by which the device tells what depends on what."""

    def __init__(self, cuda: GpuRuntime, where: tuple[int, int]) -> None:
        self.cuda = cuda
        self.where = where
        self._lane = lane_of(cuda, where)
        self.obstacle: str | None = None
        self.used = 0
        self.launches = Launches(self._join, lambda batch: cuda.run(batch, self.stream))

    @property
    def stream(self) -> int:
        """See Lane."""
        return self._lane.stream

    @property
    def epoch(self) -> int:
        """See Lane."""
        return self._lane.epoch

    def slab(self, described: Described, *, apart: bool = False) -> Slab:
        """Memory for some tensors; ``apart``: an allocation for each."""
        with self.counted():
            return Slab(self.cuda, described, self.where, self.largest, apart=apart)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What the GPU has less of after this is ours.

        If it has more, TVM's allocator has given back what it kept for later, since nothing was left; with that went
        memory that graphs use between their inputs and outputs.
        """
        before, _ = self.cuda.memory()
        yield
        after, _ = self.cuda.memory()
        self.used += max(0, before - after)
        self._lane.epoch += after > before

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Compiled code launches its kernels on our stream."""
        tvm_ffi = import_tvm_ffi()
        with tvm_ffi.use_raw_stream(tvm_ffi.device(*self.where), self.stream):
            yield

    def capture(self, put: Callable[[], None]) -> Captured:
        """What ``put`` puts on the stream, as a graph instead.

        Raises:
            DeviceError: it cannot be captured.
        """
        epoch = self.epoch
        self.cuda.begin_capture(self.stream)
        try:
            put()
        except DeviceError:
            self.cuda.abandon_capture(self.stream)
            raise
        made = Captured(self.cuda.end_capture(self.stream), epoch)
        weakref.finalize(made, self.cuda.destroy, made.handle).atexit = False
        return made

    def _join(self, calls: list[Launch]) -> Captured:
        """One graph of several calls."""

        def put() -> None:
            for call in calls:
                call.put()

        with self.on_stream(), self.counted():
            return self.capture(put)
