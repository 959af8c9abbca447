"""An entry point on the GPU, captured once and then replayed as one CUDA graph."""

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dspark_compiler.artifact import EntrySpec, nbytes
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.calls import Columns
from dspark_compiler.runtime.cpu_device import named_results
from dspark_compiler.runtime.cuda import CudaRuntime, Rows
from dspark_compiler.runtime.cuda_memory import Slab
from dspark_compiler.runtime.library import Function, import_tvm_ffi

if TYPE_CHECKING:
    from dspark_compiler.runtime.cuda_device import CudaDevice

# A tensor given as an input is copied to the input's own place up to this size, and taken where it is beyond.
_COPIED_BYTES = 1 << 16

_Place = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Graph:
    """A captured call, and the device's epoch in which what it needs in between may be written."""

    handle: int
    epoch: int


class _Staging:
    """A pinned buffer for an entry point's inputs, and the event that says when they have left it."""

    def __init__(self, cuda: CudaRuntime, spec: EntrySpec, slab: Slab) -> None:
        memory = cuda.pinned(max(slab.size, 1))
        self.address: int = memory.ctypes.data
        self.sent = cuda.event()
        self.buffers: dict[str, NDArray[Any]] = {
            tensor.name: memory[offset : offset + nbytes(tensor)].view(tensor.dtype).reshape(tensor.shape)
            for tensor, offset in zip(spec.inputs, slab.offsets.values(), strict=True)
        }


class CudaCall:
    """See Call.

    Numbers of the host go to one of two pinned buffers, and with one copy to the GPU. The first run is an ordinary
    one, in which kernels are loaded and the allocator finds memory; then the kernels are captured. A graph has the
    addresses of everything in it, so there is one for each place that large inputs are taken from. What it needs in
    between is the allocator's and shared with all other calls, which never run at the same time; so results are copied
    to memory of the call's own, where no graph captured earlier has anything to write.
    """

    def __init__(self, device: "CudaDevice", spec: EntrySpec, function: Function, shared: dict[str, Any]) -> None:
        self.width = spec.width
        self._device = device
        self._cuda = device.cuda
        self._function = function
        self._outputs = tuple(tensor.name for tensor in spec.outputs)
        self._slab = device.slab({tensor.name: tensor for tensor in spec.inputs})
        self._results = device.slab({tensor.name: tensor for tensor in spec.outputs})
        self._halves = [_Staging(self._cuda, spec, self._slab) for _ in range(2)]
        self.inputs = self._slab.tensors
        self._addresses: dict[str, int] = {name: tensor.data_ptr() for name, tensor in self.inputs.items()}
        self._sizes = {tensor.name: nbytes(tensor) for tensor in spec.inputs}
        self._shared = [shared[name] for name in (*spec.states, *spec.params)]
        self._tensor = import_tvm_ffi().Tensor
        self._graphs: dict[_Place, _Graph] = {}

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """See Call; outputs are the same tensors each time, once captured."""
        columns, tensors = {}, {}
        # The last call may still wait for its turn on the stream, and its inputs with it; those before it have left.
        self._halves.reverse()
        staging, buffers = self._halves[0], self._halves[0].buffers
        self._cuda.wait(staging.sent)
        for name, value in inputs.items():
            if isinstance(value, self._tensor):
                tensors[name] = value
            elif isinstance(value, Columns):
                buffers[name][:, 0] = value.first
                columns[name] = value.rest
            else:
                buffers[name][...] = value
        self._send(staging, columns, tensors)
        large = {name: tensor for name, tensor in tensors.items() if self._sizes[name] > _COPIED_BYTES}
        place = tuple((name, tensor.data_ptr()) for name, tensor in large.items())
        found = self._graphs.get(place)
        if found is None or found.epoch != self._device.epoch:
            return self._first(place, large)
        self._cuda.launch(found.handle, self._device.stream)
        return self._results.tensors

    def _send(self, staging: "_Staging", columns: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Puts copies of all inputs to their places on the stream, but of large tensors."""
        cuda, stream = self._cuda, self._device.stream
        cuda.copy(self._slab.address, staging.address, self._slab.size, stream)
        cuda.record(staging.sent, stream)
        for name, rest in columns.items():
            rows, width = staging.buffers[name].shape
            item = staging.buffers[name].itemsize
            to = Rows(self._addresses[name] + item, width * item)
            source = Rows(rest.data_ptr(), rest.shape[1] * item)
            cuda.copy_rows(to, source, min(width - 1, rest.shape[1]) * item, rows, stream)
        for name, tensor in tensors.items():
            if self._sizes[name] <= _COPIED_BYTES:
                cuda.copy(self._addresses[name], tensor.data_ptr(), self._sizes[name], stream)

    def _first(self, place: _Place, large: dict[str, Any]) -> dict[str, Any]:
        """Runs with large inputs from where there were none yet, and captures the kernels for the next time."""
        arguments, epoch = [*(self.inputs | large).values(), *self._shared], self._device.epoch
        with self._device.on_stream(), self._device.counted():
            results = self._run(arguments)
            if self._device.obstacle is not None:
                return results
            try:
                graph = self._capture(arguments)
            except DeviceError as error:
                self._device.obstacle = f"kernels are launched one by one, since they cannot be captured: {error}"
                return results
        self._keep(results)
        made = self._graphs[place] = _Graph(graph, epoch)
        weakref.finalize(made, self._cuda.destroy, graph).atexit = False
        return self._results.tensors

    def _capture(self, arguments: list[Any]) -> int:
        self._cuda.begin_capture(self._device.stream)
        try:
            self._keep(self._run(arguments))
        except DeviceError:
            self._cuda.abandon_capture(self._device.stream)
            raise
        return self._cuda.end_capture(self._device.stream)

    def _keep(self, results: dict[str, Any]) -> None:
        """Copies results to where they stay until the next call."""
        for name, tensor in results.items():
            size = tensor.numel() * tensor.dtype.bits // 8
            self._cuda.copy(self._results.tensors[name].data_ptr(), tensor.data_ptr(), size, self._device.stream)

    def _run(self, arguments: list[Any]) -> dict[str, Any]:
        try:
            return named_results(self._function(*arguments), self._outputs, self._tensor)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            free, total = self._cuda.memory()
            raise DeviceError(f"{reason} ({free / 1e9:.2f} of the GPU's {total / 1e9:.2f} GB are free)") from error
