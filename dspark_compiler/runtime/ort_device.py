"""Running by ONNX Runtime: sessions whose inputs and outputs are bound to memory that stays where it is."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import Artifact, EntrySpec, NamedTensor, TensorInfo, aligned_zeros
from dspark_compiler.artifact.nvidia import find_driver
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.calls import Call, Columns, Fetched
from dspark_compiler.runtime.library import Function
from dspark_compiler.runtime.memory import peak_memory_bytes
from dspark_compiler.runtime.ort_session import CPU, CUDA


class OrtTensor:
    """Memory that sessions read and write: on the host an array over it, on a GPU ONNX Runtime's own.

    Attributes:
        value: the OrtValue.
        shape: its shape.
        array: the same memory as an array; None where the host has none.
    """

    def __init__(self, value: Any, shape: tuple[int, ...], array: NDArray[Any] | None = None) -> None:
        self.value = value
        self.shape = shape
        self.array = array

    def numbers(self) -> NDArray[Any]:
        """A copy on the host."""
        return np.array(self.array) if self.array is not None else np.asarray(self.value.numpy())


class State:
    """A state that sessions hand to each other; ``spare`` is written where it cannot be written in place."""

    def __init__(self, info: TensorInfo, device: "OrtDevice") -> None:
        self._info = info
        self._device = device
        self.now = device.zeros(info)
        self.spare: OrtTensor | None = None

    def need_spare(self) -> None:
        """Makes a second one, if there is none yet."""
        self.spare = self.spare or self._device.zeros(self._info)

    def change(self) -> None:
        """What was written is read from now on."""
        assert self.spare is not None
        self.now, self.spare = self.spare, self.now


class OrtDevice:
    """See Device. The GPU that ONNX Runtime can use, else the processor."""

    is_late = False
    obstacle: str | None = None
    tensor_type: type = OrtTensor

    def __init__(self, provider: str, number: int) -> None:
        self.provider = provider
        self.number = number

    def tensors(self, artifact: Artifact) -> dict[str, Any]:
        """See Device; weights stay in the files that are mapped, where the processor computes."""
        states = {name: State(info, self) for name, info in artifact.manifest.states.items()}
        if self.provider == CUDA:
            return dict(states)  # each session copies its weights to the GPU
        weights = artifact.params(prefault=True)
        return {name: self.given(array) for name, array in weights.items()} | states

    def call(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> Call:
        """See Device; the session is opened when it is called first."""
        return OrtCall(self, spec, function, shared)

    def together(self) -> AbstractContextManager[None]:
        """See Device; calls are made as they come."""
        return nullcontext()

    def fetch(self, *tensors: Any) -> Fetched:
        """See Device; copies."""
        arrays = tuple(tensor.numbers() for tensor in tensors)
        return Fetched(lambda: arrays)

    def peak_memory_bytes(self) -> int:
        """See Device; the host's, also of what a GPU computes."""
        return peak_memory_bytes()

    def zeros(self, info: TensorInfo | NamedTensor) -> OrtTensor:
        """Memory of a shape and type."""
        return self.given(aligned_zeros(info.shape, info.dtype))

    def given(self, array: NDArray[Any]) -> OrtTensor:
        """An array on the device: its own memory on the host, a copy on a GPU."""
        if self.provider != CUDA:
            return self.on_host(array)
        return OrtTensor(_ort_value(array, "cuda", self.number), array.shape)

    def on_host(self, array: NDArray[Any]) -> OrtTensor:
        """An array as sessions read it; a GPU's copies it when they run."""
        return OrtTensor(_ort_value(array, "cpu", 0), array.shape, array)


def _ort_value(array: NDArray[Any], kind: str, number: int) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, kind, number)


class OrtCall:
    """See Call. Numbers of the host go into buffers that are bound once; states are written where they lie.

    Where a model reads a state after it began to write it, it writes another one, and the two change places.
    """

    def __init__(self, device: OrtDevice, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> None:
        self.width = spec.width
        self._device = device
        self._spec = spec
        self._open = function
        self._shared = shared
        self._buffers = {tensor.name: aligned_zeros(tensor.shape, tensor.dtype) for tensor in spec.inputs}
        self.inputs: dict[str, Any] = {name: device.on_host(array) for name, array in self._buffers.items()}
        self._outputs: dict[str, Any] = {}
        self._bound: dict[str, Any] = {}
        self._moving: list[str] = []
        self._staying: list[str] = []
        self._session: Any = None

    def prepare(self, **inputs: Any) -> None:
        """See Call."""
        for name, value in inputs.items():
            self._take(name, value)

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """See Call; outputs are the same tensors each time."""
        if self._session is None:
            self._session = self._start()
        self.prepare(**inputs)
        self.again()
        return self._outputs

    def again(self) -> None:
        """See Call."""
        if not self._session:
            return
        states = self._shared
        for name in (*self._staying, *self._moving):
            self._bind(name, states[name].now)
        for name in self._moving:
            self._binding.bind_ortvalue_output(f"next.{name}", states[name].spare.value)
        self._session.run_with_iobinding(self._binding)
        for name in self._moving:
            states[name].change()

    def _take(self, name: str, value: Any) -> None:
        """An input is a tensor where it lies, if it has the input's shape, or numbers that are copied."""
        buffer = self._buffers[name]
        if isinstance(value, OrtTensor) and value.shape == buffer.shape:
            self._bind(name, value)
            return
        if isinstance(value, Columns):
            value = value.tensor.numbers()[:, : buffer.shape[1]]
        elif isinstance(value, OrtTensor):
            value = value.numbers().reshape(buffer.shape)
        buffer[...] = value
        self._bind(name, self.inputs[name])

    def _bind(self, name: str, tensor: OrtTensor) -> None:
        """Lets the model read a tensor, and write it if it is a state that stays where it is."""
        if self._bound.get(name) is tensor or not self._session:
            return
        self._bound[name] = tensor
        self._binding.bind_ortvalue_input(name, tensor.value)
        if name in self._written:
            self._binding.bind_ortvalue_output(f"next.{name}", tensor.value)

    def _start(self) -> Any:
        """Opens the session and binds what stays; False where there is nothing to do."""
        device, spec = self._device, self._spec
        weights = {name: self._shared[name].value for name in spec.params if name in self._shared}
        session = self._open(device.provider, device.number, weights)
        if session is None:
            return False
        names = {output.name for output in session.get_outputs()}
        written = {name for name in spec.states if f"next.{name}" in names}
        in_place = set(session.get_modelmeta().custom_metadata_map["in_place"].split())
        self._moving = sorted(written - in_place)
        self._staying = sorted(set(spec.states) - set(self._moving))
        self._written = written & in_place
        self._binding = session.io_binding()
        for name in self._moving:
            self._shared[name].need_spare()
        self._outputs = {tensor.name: device.zeros(tensor) for tensor in spec.outputs}
        for name, tensor in self._outputs.items():
            self._binding.bind_ortvalue_output(name if name in names else f"next.{name}", tensor.value)
        self._session = session
        for name, tensor in self.inputs.items():
            self._bind(name, tensor)
        return session


def open_onnxruntime(artifact: Artifact) -> OrtDevice:
    """Nvidia's GPU of the artifact's number, where ONNX Runtime and the machine have one to use, else the processor.

    Raises:
        InputError: there is no such device.
    """
    import onnxruntime

    driver = find_driver() if CUDA in onnxruntime.get_available_providers() else None
    gpus = len(driver.gpus) if driver is not None else 0
    if artifact.device >= max(gpus, 1):
        here = f"{gpus} GPUs" if gpus else "the processor, which is one device, 0"
        raise InputError(f"--device {artifact.device}: there is none of this number; ONNX Runtime has {here}")
    return OrtDevice(CUDA if gpus else CPU, artifact.device)
