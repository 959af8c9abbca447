"""An entry point as a call: its arguments are laid out once, its inputs written into the same buffers each time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import EntrySpec, aligned_zeros
from dspark_compiler.runtime.library import Function, import_tvm_ffi


class Call:
    """One entry point with its argument list.

    Attributes:
        width: tokens a sequence that it takes or makes.
    """

    def __init__(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> None:
        tvm_ffi = import_tvm_ffi()
        self.width = spec.width
        self._tensor = tvm_ffi.Tensor
        self._function = function
        self._inputs = {tensor.name: aligned_zeros(tensor.shape, tensor.dtype) for tensor in spec.inputs}
        self._outputs = tuple(tensor.name for tensor in spec.outputs)
        self._places = {tensor.name: place for place, tensor in enumerate(spec.inputs)}
        self._arguments = [tvm_ffi.from_dlpack(self._inputs[tensor.name]) for tensor in spec.inputs]
        self._arguments += [shared[name] for name in (*spec.states, *spec.params)]

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Runs with these inputs; returns the output tensors by name.

        What another call returned takes the place of the input's own buffer, and nothing is copied; anything else is
        broadcast to that buffer.
        """
        arguments = self._arguments
        for name, value in inputs.items():
            if isinstance(value, self._tensor):
                if arguments is self._arguments:
                    arguments = list(arguments)
                arguments[self._places[name]] = value
            else:
                self._inputs[name][...] = value
        result = self._function(*arguments)
        # One tensor comes bare, several come as a tuple.
        tensors = (result,) if isinstance(result, self._tensor) else result
        return dict(zip(self._outputs, tensors, strict=False)) if self._outputs else {}


def to_array(tensor: Any) -> NDArray[Any]:
    """A tensor's numbers, shared with it; it stays alive as long as they are."""
    array: NDArray[Any] = np.from_dlpack(tensor)
    return array
