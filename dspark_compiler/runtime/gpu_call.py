"""An entry point on the GPU, captured once and then replayed as one CUDA graph."""

from functools import partial
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import EntrySpec, nbytes
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.calls import Columns
from dspark_compiler.runtime.cpu_device import named_results
from dspark_compiler.runtime.dlpack import Wrapping
from dspark_compiler.runtime.gpu import GpuRuntime, Rows, Transfer
from dspark_compiler.runtime.gpu_context import GpuContext
from dspark_compiler.runtime.gpu_memory import Slab
from dspark_compiler.runtime.launches import Captured, Launch
from dspark_compiler.runtime.library import Function, import_tvm_ffi

_Tensors = tuple[tuple[str, Any], ...]  # inputs that are not numbers, by name


class _Staging:
    """A pinned buffer for an entry point's inputs, and the event that says when they have left it."""

    def __init__(self, cuda: GpuRuntime, spec: EntrySpec, slab: Slab) -> None:
        memory = cuda.pinned(max(slab.size, 1))
        self.address: int = memory.ctypes.data
        self.sent = cuda.event()
        self._buffers: dict[str, NDArray[Any]] = {
            tensor.name: memory[(at := slab.offsets[tensor.name]) : at + nbytes(tensor)]
            .view(tensor.dtype)
            .reshape(tensor.shape)
            for tensor in spec.inputs
        }
        self._holds: dict[str, Any] = {}

    def put(self, inputs: dict[str, Any]) -> None:
        """Writes these, but for what is here from the last time."""
        for name, value in inputs.items():
            if self._holds.get(name) is not value or not _stays(value):
                self._buffers[name][...] = value
        self._holds |= inputs


def _stays(value: Any) -> bool:
    """Whether an input that is this again has the same numbers."""
    return not value.flags.writeable if isinstance(value, np.ndarray) else isinstance(value, int)


class GpuCall:
    """See Call.

    Numbers of the host go to one of two pinned buffers, and with one copy to the GPU, unless they are what is there.
    The first run is an ordinary one, in which kernels are loaded and the allocator finds memory; then the kernels are
    captured. A graph has the addresses of everything in it, so there is one for each choice of tensors. What it needs
    in between is the allocator's and shared with all other calls, which never run at the same time; so results lie in
    memory of the call's own, where no graph captured earlier has anything to write: kernels make them there, or else
    they are copied.
    """

    def __init__(self, context: GpuContext, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> None:
        self.width = spec.width
        self._context = context
        self._cuda = context.cuda
        self._function = function
        self._outputs = tuple(tensor.name for tensor in spec.outputs)
        # Small ones first: what the host gives and reads lies together then, and logits need not cross the bus with it.
        self._slab = context.slab({tensor.name: tensor for tensor in sorted(spec.inputs, key=nbytes)})
        outputs = {tensor.name: tensor for tensor in sorted(spec.outputs, key=nbytes)}
        made_there = {name: outputs.pop(name) for name in spec.destinations}
        self._destinations = context.slab(made_there, apart=context.apart)
        self._copied = context.slab(outputs)
        self._results = self._copied.tensors | self._destinations.tensors
        self._halves = [_Staging(self._cuda, spec, self._slab) for _ in range(2)]
        self.inputs = {tensor.name: self._slab.tensors[tensor.name] for tensor in spec.inputs}
        self._ends = {tensor.name: self._slab.offsets[tensor.name] + nbytes(tensor) for tensor in spec.inputs}
        self._sent: dict[str, Any] = {}  # the numbers of the last run, if they cannot have changed since
        self._prepared = False
        self._shared = [shared[name] for name in (*spec.states, *spec.params)]
        self._shared += [self._destinations.tensors[name] for name in spec.destinations]
        self._tensor = import_tvm_ffi().Tensor
        self._kinds = (self._tensor, Columns)
        self._launches: dict[_Tensors, Launch] = {}
        self._last: Captured | None = None

    def prepare(self, **inputs: Any) -> None:
        """See Call."""
        self._send(inputs)
        self._prepared = True

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """See Call; outputs are the same tensors each time, once captured."""
        if not self._prepared:
            inputs = self._sent_apart(inputs)
        self._prepared = False
        tensors = tuple(inputs.items())
        launch = self._launches.get(tensors)
        if launch is None or launch.captured.epoch != self._context.epoch:
            self._context.launches.flush()
            self._first(tensors)
        else:
            self._last = launch.captured
            self._context.launches.put(launch)
        return self._results

    def again(self) -> None:
        """See Call; it was captured when it ran last."""
        last = self._last
        assert last is not None, "what was not captured cannot be launched again"
        assert last.epoch == self._context.epoch, "memory has got another use since this was captured"
        self._context.launches.flush()
        self._cuda.launch(last.handle, self._context.stream)

    def _sent_apart(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Sends the numbers among these; returns the others."""
        numbers = {name: value for name, value in inputs.items() if not isinstance(value, self._kinds)}
        self._send(numbers)
        return {name: value for name, value in inputs.items() if name not in numbers} if numbers else inputs

    def _send(self, inputs: dict[str, Any]) -> None:
        """Has a copy of numbers go to their places before what runs next, unless they are there."""
        if [*self._sent] == [*inputs] and all(map(is_, self._sent.values(), inputs.values())):
            return
        if inputs:
            self._stage(inputs)
        self._sent = inputs if all(map(_stays, inputs.values())) else {}

    def _stage(self, inputs: dict[str, Any]) -> None:
        launches = self._context.launches
        if launches.has(self._last):
            launches.flush()
        # The last run may still wait for its turn on the stream, and its inputs with it; those before it have left.
        self._halves.reverse()
        staging = self._halves[0]
        self._cuda.wait(staging.sent)
        staging.put(inputs)
        size = max(map(self._ends.__getitem__, inputs))
        launches.send(Transfer(self._slab.address, staging.address, size), staging.sent)

    def _first(self, tensors: _Tensors) -> None:
        """Runs with tensors from where there were none yet, and captures the kernels for the next time."""
        given = {name: value.tensor if isinstance(value, Columns) else value for name, value in tensors}
        columns = [name for name, value in tensors if isinstance(value, Columns)]
        apart = [(name, given.pop(name)) for name in columns if not self._lies(name, given[name])]
        put = partial(self._put, apart, self._arguments(given))
        self._last = None
        with self._context.on_stream(), self._context.counted():
            put()
            if self._context.obstacle is None:
                try:
                    self._last = self._context.capture(put)
                    self._launches[tensors] = Launch(self._last, put)
                except DeviceError as error:
                    self._context.obstacle = f"kernels are launched one by one, since they cannot be captured: {error}"

    def _lies(self, name: str, tensor: Any) -> bool:
        """Whether a tensor's first columns lie as the input does, and can be taken where they are."""
        rows, width = self.inputs[name].shape
        return bool(rows == 1 or tensor.shape[1] == width)

    def _arguments(self, tensors: dict[str, Any]) -> list[Any]:
        given = {name: self._shaped(name, tensor) for name, tensor in tensors.items()}
        return [given.get(name, own) for name, own in self.inputs.items()] + self._shared

    def _shaped(self, name: str, tensor: Any) -> Any:
        """The tensor in the shape of the input it is given as: [B] may be given for [B,1], [1,M] for [1,N]."""
        return Wrapping(tensor.data_ptr(), self.inputs[name].shape, str(tensor.dtype), self._context.where).tensor

    def _put(self, columns: list[tuple[str, Any]], arguments: list[Any]) -> None:
        """Puts all of a run on the stream, and copies of results that are not made where they stay until the next."""
        for name, tensor in columns:
            self._copy_columns(name, tensor)
        made = self._run(arguments)
        kept = self._copied.tensors
        sizes = {name: made[name].numel() * made[name].dtype.bits // 8 for name in kept}
        copies = [Transfer(kept[name].data_ptr(), made[name].data_ptr(), sizes[name]) for name in kept]
        self._cuda.copy_all(copies, self._context.stream)

    def _copy_columns(self, name: str, source: Any) -> None:
        """Puts a copy of the first columns of a tensor to an input's place on the stream."""
        rows, width = self.inputs[name].shape
        item = source.dtype.bits // 8
        to, of = Rows(self.inputs[name].data_ptr(), width * item), Rows(source.data_ptr(), source.shape[1] * item)
        self._cuda.copy_rows(to, of, width * item, rows, self._context.stream)

    def _run(self, arguments: list[Any]) -> dict[str, Any]:
        try:
            return named_results(self._function(*arguments), self._outputs, self._tensor)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            free, total = self._cuda.memory()
            raise DeviceError(f"{reason} ({free / 1e9:.2f} of the GPU's {total / 1e9:.2f} GB are free)") from error
