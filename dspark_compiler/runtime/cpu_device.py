"""Running on the processor: tensors are the host's own arrays, and a call is over when it returns."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import Artifact, EntrySpec, aligned_zeros
from dspark_compiler.runtime.calls import Call, Columns, Fetched
from dspark_compiler.runtime.library import Function, import_tvm_ffi
from dspark_compiler.runtime.memory import peak_memory_bytes


class CpuDevice:
    """See Device."""

    is_late = False
    obstacle: str | None = None

    def __init__(self) -> None:
        self.tensor_type: type = import_tvm_ffi().Tensor

    def tensors(self, artifact: Artifact) -> dict[str, Any]:
        """See Device; weights stay in the files that are mapped."""
        states = artifact.manifest.states
        arrays = artifact.params(prefault=True)
        arrays |= {name: aligned_zeros(state.shape, state.dtype) for name, state in states.items()}
        # Tensors keep the arrays they came from alive.
        from_dlpack = import_tvm_ffi().from_dlpack
        return {name: from_dlpack(array) for name, array in arrays.items()}

    def call(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> Call:
        """See Device."""
        return CpuCall(spec, function, shared)

    def together(self) -> AbstractContextManager[None]:
        """See Device; calls are made as they come."""
        return nullcontext()

    def fetch(self, *tensors: Any) -> Fetched:
        """See Device; nothing is copied."""
        arrays = tuple(to_array(tensor) for tensor in tensors)
        return Fetched(lambda: arrays)

    def peak_memory_bytes(self) -> int:
        """See Device."""
        return peak_memory_bytes()


class CpuCall:
    """See Call. Arguments are laid out once, inputs written into the same buffers each time."""

    def __init__(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> None:
        tvm_ffi = import_tvm_ffi()
        self.width = spec.width
        self._tensor = tvm_ffi.Tensor
        self._function = function
        self._buffers = {tensor.name: aligned_zeros(tensor.shape, tensor.dtype) for tensor in spec.inputs}
        self._outputs = tuple(tensor.name for tensor in spec.outputs)
        self._places = {tensor.name: place for place, tensor in enumerate(spec.inputs)}
        self.inputs = {name: tvm_ffi.from_dlpack(buffer) for name, buffer in self._buffers.items()}
        self._arguments = [*self.inputs.values(), *(shared[name] for name in (*spec.states, *spec.params))]
        self._last = self._arguments

    def prepare(self, **inputs: Any) -> None:
        """See Call."""
        for name, value in inputs.items():
            self._buffers[name][...] = value

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """See Call; outputs are new ones each time."""
        arguments = self._arguments
        for name, value in inputs.items():
            buffer = self._buffers[name]
            if isinstance(value, Columns):
                buffer[...] = to_array(value.tensor)[:, : buffer.shape[1]]
            elif not isinstance(value, self._tensor):
                buffer[...] = value
            elif value.shape != buffer.shape:
                buffer[...] = to_array(value).reshape(buffer.shape)
            else:
                if arguments is self._arguments:
                    arguments = list(arguments)
                arguments[self._places[name]] = value
        self._last = arguments
        return named_results(self._function(*arguments), self._outputs, self._tensor)

    def again(self) -> None:
        """See Call."""
        self._function(*self._last)


def named_results(result: Any, names: tuple[str, ...], tensor: type) -> dict[str, Any]:
    """What a compiled function returned, by output: one tensor comes bare, several come as a tuple."""
    tensors = (result,) if isinstance(result, tensor) else result
    return dict(zip(names, tensors, strict=False)) if names else {}


def to_array(tensor: Any) -> NDArray[Any]:
    """A tensor's numbers, shared with it; it stays alive as long as they are."""
    array: NDArray[Any] = np.from_dlpack(tensor)
    return array
