"""A GPU made of the host's memory, which does nothing until it is waited for: what races on a real one shows here.

Compiled functions are those of an artifact for the host. Calling one gives its outputs at once, without their numbers,
and puts the work on the stream.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dspark_compiler.artifact import EntrySpec, aligned_zeros
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.cpu_device import named_results, to_array
from dspark_compiler.runtime.dlpack import Wrapping
from dspark_compiler.runtime.gpu import Batch, Rows, Transfer, run_in_turn
from dspark_compiler.runtime.gpu_device import Fill, GpuDevice
from dspark_compiler.runtime.gpu_memory import Slab
from dspark_compiler.runtime.library import import_tvm_ffi

Work = Callable[[], Any]


class FakeCuda:
    """The methods of CudaRuntime; one stream for all, but those of uploads are as good as done."""

    def __init__(self, *, memory: int = 1 << 30, captures: bool = True) -> None:
        self.free, self.total, self.captures = memory, memory, captures
        self.waiting: list[Work] = []
        self.captured: list[Work] | None = None
        self.graphs: dict[int, list[Work]] = {}
        self.marks: dict[int, Work] = {}
        self.log: list[str] = []
        self.on_wait: Callable[[int], Any] = lambda event: None
        self._events = self._made = 0
        self._blocks: dict[int, np.ndarray] = {}

    def memory(self) -> tuple[int, int]:
        return self.free, self.total

    def allocate(self, size: int) -> int:
        block = aligned_zeros((size,), "uint8")
        block[:] = 0x7F
        self._blocks[block.ctypes.data] = block
        return block.ctypes.data

    def release(self, address: int) -> None:
        del self._blocks[address]

    def pinned(self, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def stream(self) -> int:
        return 7

    def event(self) -> int:
        self._events += 1
        return self._events

    def put(self, work: Work) -> None:
        (self.waiting if self.captured is None else self.captured).append(work)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self.put(lambda: ctypes.memmove(to, source, size))

    def copy_all(self, copies: Sequence[Transfer], stream: int) -> None:
        for each in copies:
            self.copy(each.to, each.source, each.size, stream)

    def copy_rows(self, to: Rows, source: Rows, row: int, rows: int, stream: int) -> None:
        for i in range(rows):
            self.copy(to.address + i * to.pitch, source.address + i * source.pitch, row, stream)

    def zero(self, address: int, size: int, stream: int) -> None:
        self.put(lambda: ctypes.memset(address, 0, size))

    def run(self, batch: Batch, stream: int) -> None:
        self.log += ["batch", *["send"] * len(batch.before)]
        run_in_turn(self, batch, stream)

    def record(self, event: int, stream: int) -> None:
        def mark() -> None:
            """Nothing happens here; it is waited for."""

        self.marks[event] = mark
        self.put(mark)

    def wait(self, event: int) -> None:
        mark = self.marks.get(event)
        if mark in self.waiting:
            self.on_wait(event)
            self._work(self.waiting.index(mark) + 1)

    def synchronize(self, stream: int) -> None:
        self._work(len(self.waiting))

    def _work(self, count: int) -> None:
        now, self.waiting = self.waiting[:count], self.waiting[count:]
        for work in now:
            work()

    def begin_capture(self, stream: int) -> None:
        self.captured = []

    def end_capture(self, stream: int) -> int:
        assert self.captured is not None
        self._made += 1
        self.graphs[self._made], self.captured = self.captured, None
        if not self.captures:
            raise DeviceError("cudaStreamEndCapture: operation failed (error 901)")
        return self._made

    def abandon_capture(self, stream: int) -> None:
        self.captured = None

    def destroy(self, graph: int) -> None:
        del self.graphs[graph]

    def launch(self, graph: int, stream: int) -> None:
        self.log.append("launch")
        for work in self.graphs[graph]:
            self.put(work)


class FakeDevice(GpuDevice):
    """GpuDevice on FakeCuda."""

    def __init__(self, fill: Fill | None = None, **options: Any) -> None:
        self.fake = FakeCuda(**options)
        super().__init__(self.fake, (1, 0), fill)

    def call(self, spec: EntrySpec, function: Callable[..., Any], shared: dict[str, Any]) -> Any:
        names, tensor = tuple(output.name for output in spec.outputs), import_tvm_ffi().Tensor

        def run(*arguments: Any) -> Any:
            outputs = self._outputs(spec)

            # A kernel knows addresses; what describes them is gone when it runs.
            kept = [Wrapping(a.data_ptr(), a.shape, str(a.dtype), self.where) for a in arguments]

            def work() -> None:
                for name, made in named_results(function(*(a.tensor for a in kept)), names, tensor).items():
                    to_array(outputs[name])[...] = to_array(made)

            self.fake.log.append("run" if self.fake.captured is None else "capture")
            self.fake.put(work)
            made = tuple(outputs.values())
            return made[0] if len(made) == 1 else made

        return super().call(spec, run, shared)

    def _outputs(self, spec: EntrySpec) -> dict[str, Any]:
        slab = Slab(self.cuda, {output.name: output for output in spec.outputs}, self.where)
        self._slabs.append(slab)
        return slab.tensors
