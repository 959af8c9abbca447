"""Running by ONNX Runtime: sessions whose inputs and outputs are bound to memory that stays where it is."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import Artifact, EntrySpec, NamedTensor, TensorInfo, aligned_zeros
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.calls import Call, Columns, Fetched
from dspark_compiler.runtime.library import Function
from dspark_compiler.runtime.memory import peak_memory_bytes
from dspark_compiler.runtime.ort_provider import CUDA_REMEDY, Provider, choose_provider, load_provider


class OrtTensor:
    """Memory of the host that sessions read and write.

    Attributes:
        array: the host's array.
        value: the OrtValue over it.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        import onnxruntime

        self.array = array
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def put(self, numbers: Any) -> None:
        """Fills it with numbers, which are broadcast to its shape."""
        self.array[...] = numbers


class GpuTensor:
    """Memory of a GPU that sessions read and write.

    Attributes:
        value: an OrtValue over it that does not own it: sessions share no others as weights.

    Raises:
        DeviceError: the GPU cannot be used, or has too little memory.
    """

    def __init__(self, array: NDArray[Any], provider: Provider) -> None:
        import onnxruntime

        self._dtype = array.dtype
        try:
            self._owner = onnxruntime.OrtValue.ortvalue_from_numpy(array, provider.device, provider.number)
            self.value = _view(self._owner)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"{provider.name}: {reason}; {CUDA_REMEDY}") from error

    @property
    def array(self) -> NDArray[Any]:
        """What it holds, copied to the host."""
        held: NDArray[Any] = self._owner.numpy()
        return held

    def put(self, numbers: Any) -> None:
        """See OrtTensor."""
        shape = self._owner.shape()
        self._owner.update_inplace(np.ascontiguousarray(np.broadcast_to(np.asarray(numbers, self._dtype), shape)))


def _view(owner: Any) -> Any:
    import onnxruntime

    kind = onnxruntime.capi.onnxruntime_pybind11_state.OrtValue  # only this one reads DLPack
    return onnxruntime.OrtValue(kind.from_dlpack(owner._ortvalue.to_dlpack(), owner.data_type() == "tensor(bool)"))


Kept = OrtTensor | GpuTensor


def _kept(array: NDArray[Any], provider: Provider) -> Kept:
    """An array where the provider computes: on the host itself, on a GPU a copy."""
    return OrtTensor(array) if provider.device == "cpu" else GpuTensor(array, provider)


def _zeros(info: TensorInfo | NamedTensor, provider: Provider) -> Kept:
    """Zeros of a shape and type where the provider computes."""
    return _kept(aligned_zeros(info.shape, info.dtype), provider)


class State:
    """A state that sessions hand to each other; ``spare`` is written where it cannot be written in place."""

    def __init__(self, info: TensorInfo, provider: Provider) -> None:
        self._info = info
        self._provider = provider
        self.now = _zeros(info, provider)
        self.spare: Kept | None = None

    def need_spare(self) -> None:
        """Makes a second one, if there is none yet."""
        self.spare = self.spare or _zeros(self._info, self._provider)

    def change(self) -> None:
        """What was written is read from now on."""
        assert self.spare is not None
        self.now, self.spare = self.spare, self.now


class OrtDevice:
    """See Device: ONNX Runtime's kernels; weights, states, inputs and outputs are where the provider computes."""

    is_late = False
    obstacle: str | None = None

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.tensor_type: type = OrtTensor if provider.device == "cpu" else GpuTensor

    def tensors(self, artifact: Artifact) -> dict[str, Any]:
        """See Device; on the host weights stay in the files that are mapped."""
        held = artifact.params(prefault=True)
        weights: dict[str, Any] = {name: _kept(array, self.provider) for name, array in held.items()}
        return weights | {name: State(info, self.provider) for name, info in artifact.manifest.states.items()}

    def call(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> Call:
        """See Device; the session is opened when it is called first."""
        return OrtCall(spec, function, shared, self.provider)

    def together(self) -> AbstractContextManager[None]:
        """See Device; calls are made as they come."""
        return nullcontext()

    def fetch(self, *tensors: Any) -> Fetched:
        """See Device; copies."""
        arrays = tuple(np.array(tensor.array) for tensor in tensors)
        return Fetched(lambda: arrays)

    def peak_memory_bytes(self) -> int:
        """See Device; the host's."""
        return peak_memory_bytes()


class OrtCall:
    """See Call. Numbers of the host go into buffers that are bound; states are written where they lie.

    Where a model reads a state after it began to write it, it writes another one, and the two change places.
    """

    def __init__(self, spec: EntrySpec, function: Function, shared: dict[str, Any], provider: Provider) -> None:
        self.width = spec.width
        self._provider = provider
        self._spec = spec
        self._open = function
        self._shared = shared
        self.inputs: dict[str, Any] = {tensor.name: _zeros(tensor, provider) for tensor in spec.inputs}
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
        held = self.inputs[name]
        shape = tuple(held.value.shape())
        if isinstance(value, Kept) and tuple(value.value.shape()) == shape:
            self._bind(name, value)
            return
        if isinstance(value, Columns):
            value = value.tensor.array[:, : shape[1]]
        elif isinstance(value, Kept):
            value = value.array.reshape(shape)
        held.put(value)
        self._bind(name, held)

    def _bind(self, name: str, tensor: Kept) -> None:
        """Lets the model read a tensor, and write it if it is a state that stays where it is.

        With a GPU it is done for each call: what a node on the other side reads is copied there when it is bound.
        """
        if not self._session or (self._provider.device == "cpu" and self._bound.get(name) is tensor):
            return
        self._bound[name] = tensor
        self._binding.bind_ortvalue_input(name, tensor.value)
        if name in self._written:
            self._binding.bind_ortvalue_output(f"next.{name}", tensor.value)

    def _start(self) -> Any:
        """Opens the session and binds what stays; False where there is nothing to do."""
        spec = self._spec
        session = self._open(self._provider, {name: self._shared[name].value for name in spec.params})
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
        self._outputs = {tensor.name: _zeros(tensor, self._provider) for tensor in spec.outputs}
        for name, tensor in self._outputs.items():
            self._binding.bind_ortvalue_output(name if name in names else f"next.{name}", tensor.value)
        self._session = session
        for name, tensor in self.inputs.items():
            self._bind(name, tensor)
        return session


def open_onnxruntime(artifact: Artifact) -> OrtDevice:
    """The device an artifact is run on: a GPU that can, else the processor.

    Raises:
        InputError: there is none of the number it was opened for.
    """
    provider = choose_provider(artifact)
    load_provider(provider)
    return OrtDevice(provider)
