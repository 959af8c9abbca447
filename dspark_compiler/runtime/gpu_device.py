"""Running on an Nvidia GPU: calls and copies follow each other without the host's waiting."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import Artifact, EntrySpec
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.calls import Call, Fetched
from dspark_compiler.runtime.cuda import CudaRuntime
from dspark_compiler.runtime.gpu import GpuRuntime, Transfer
from dspark_compiler.runtime.gpu_call import GpuCall
from dspark_compiler.runtime.gpu_context import FIRST_GPU, GpuContext
from dspark_compiler.runtime.gpu_memory import ALIGNMENT, Described, Slab, slab_bytes, upload
from dspark_compiler.runtime.library import Function, import_tvm_ffi, load_cudart

# Puts weights into the tensors of their names, which hold nothing yet, before it returns or on the device's stream.
Fill = Callable[["GpuDevice", Mapping[str, Any]], None]

_PLACE_BYTES = 1 << 16  # pinned memory that is fetched into comes in doubles of this


class GpuDevice(GpuContext):
    """See Device; ``fill`` makes weights where the artifact's own are not to be read."""

    is_late = True
    states_apart = False
    """Whether each state is an allocation of its own, by which the device tells what depends on what."""

    def __init__(self, cuda: GpuRuntime, where: tuple[int, int] = FIRST_GPU, fill: Fill | None = None) -> None:
        super().__init__(cuda, where)
        self.tensor_type: type = import_tvm_ffi().Tensor
        self._fill = fill
        self._places: list[_Place] = []  # that nobody fetches into
        self._fetches: dict[tuple[int, ...], _Fetch] = {}  # by the ids of tensors, which these keep
        self._slabs: list[Slab] = []

    def tensors(self, artifact: Artifact) -> dict[str, Any]:
        """See Device."""
        manifest = artifact.manifest
        self._require(manifest.params, manifest.states)
        weights, states = self.slab(manifest.params), self.slab(manifest.states, apart=self.states_apart)
        self._slabs += weights, states
        if self._fill is None:
            upload(self.cuda, artifact.params(), weights)
        else:
            self._fill(self, weights.tensors)
        for address, size in states.parts:
            self.cuda.zero(address, size, self.stream)
        return weights.tensors | states.tensors

    def _require(self, params: Described, states: Described) -> None:
        weights, caches = slab_bytes(params), slab_bytes(states)
        free, total = self.cuda.memory()
        if weights + caches > free:
            raise DeviceError(
                f"{weights / 1e9:.2f} GB of weights and {caches / 1e9:.2f} GB of caches do not fit the GPU: "
                f"{free / 1e9:.2f} of its {total / 1e9:.2f} GB are free; end what else runs on it, or compile "
                "with a smaller --max-seq-len or --max-batch, or quantized"
            )

    def call(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> Call:
        """See Device."""
        return GpuCall(self, spec, function, shared)

    def together(self) -> AbstractContextManager[None]:
        """See Device: one launch."""
        return self.launches.together()

    def fetch(self, *tensors: Any) -> Fetched:
        """See Device; copies, so that calls made later do not change them."""
        key = tuple(map(id, tensors))
        plan = self._fetches.get(key)
        if plan is None:
            plan = self._fetches[key] = _Fetch.of(tensors)
        place = self._place(plan.size)
        self.launches.after(partial(self._put, plan, place))
        return Fetched(_Arrival(self, plan, place, self._places.append))

    def _put(self, plan: "_Fetch", place: "_Place") -> None:
        copies = [Transfer(place.address + offset, address, size) for offset, address, size in plan.copies]
        self.cuda.copy_all(copies, self.stream)
        self.cuda.record(place.filled, self.stream)

    def _place(self, size: int) -> "_Place":
        found = next((place for place in self._places if place.memory.size >= size), None)
        if found is None:
            return _Place(self.cuda, max(_PLACE_BYTES, 1 << (size - 1).bit_length()))
        self._places.remove(found)
        return found

    def peak_memory_bytes(self) -> int:
        """See Device: what the GPU had less of after each allocation; nothing is given back before the end."""
        return self.used


def _pieces(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Addresses and sizes of copies that cover these; what is near each other is one copy."""
    pieces: list[tuple[int, int]] = []
    for begin, size in sorted(ranges):
        if pieces and begin - sum(pieces[-1]) <= ALIGNMENT:
            pieces[-1] = pieces[-1][0], max(pieces[-1][1], begin + size - pieces[-1][0])
        else:
            pieces.append((begin, size))
    return pieces


class _Place:
    """Pinned memory that tensors are fetched into, and the event that says when they are there."""

    def __init__(self, cuda: GpuRuntime, size: int) -> None:
        self.memory = cuda.pinned(size)
        self.address: int = self.memory.ctypes.data
        self.filled = cuda.event()


@dataclass(frozen=True)
class _Fetch:
    """How some tensors are fetched, which are the same step by step.

    Attributes:
        copies: offset in a place, address and size of each.
        size: bytes of all.
        views: where each tensor lies in a place, from and to, its type and shape.
    """

    tensors: tuple[Any, ...]
    copies: list[tuple[int, int, int]]
    size: int
    views: list[tuple[int, int, str, tuple[int, ...]]]

    @staticmethod
    def of(tensors: tuple[Any, ...]) -> "_Fetch":
        ranges = [(tensor.data_ptr(), tensor.numel() * (tensor.dtype.bits // 8)) for tensor in tensors]
        pieces = _pieces(ranges)
        offsets = list(accumulate((size for _, size in pieces), initial=0))
        views = []
        for tensor, (begin, size) in zip(tensors, ranges, strict=True):
            number = next(i for i, (address, length) in enumerate(pieces) if address <= begin < address + length)
            at = offsets[number] + begin - pieces[number][0]
            views.append((at, at + size, str(tensor.dtype), tuple(tensor.shape)))
        copies = [(offset, address, size) for offset, (address, size) in zip(offsets, pieces, strict=False)]
        return _Fetch(tensors, copies, offsets[-1], views)

    def read(self, memory: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        """The tensors, out of a place they have come to."""
        return tuple(memory[begin:end].view(dtype).reshape(shape).copy() for begin, end, dtype, shape in self.views)


class _Arrival:
    """Waits for what was fetched; its place can be used again when it was read, or nobody is going to."""

    def __init__(self, context: GpuContext, plan: _Fetch, place: _Place, give_back: Callable[[_Place], None]) -> None:
        self._context = context
        self._plan = plan
        self._place = place
        self._give_back = give_back
        self._arrays: tuple[NDArray[Any], ...] | None = None

    def __call__(self) -> tuple[NDArray[Any], ...]:
        if self._arrays is None:
            self._context.launches.flush()
            self._context.cuda.wait(self._place.filled)
            self._arrays = self._plan.read(self._place.memory)
            self._give_back(self._place)
        return self._arrays

    def __del__(self) -> None:
        if self._arrays is None:  # a later fetch into the same place comes after this one's on the stream
            self._give_back(self._place)


def open_cuda(artifact: Artifact, fill: Fill | None = None) -> GpuDevice:
    """The GPU the artifact was opened for; the artifact's libraries are loaded.

    ``fill`` takes the place of the artifact's weights.

    Raises:
        DeviceError: CUDA cannot use it.
    """
    return GpuDevice(CudaRuntime(load_cudart(artifact), artifact.device), (FIRST_GPU[0], artifact.device), fill)
