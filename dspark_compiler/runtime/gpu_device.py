"""Running on an Nvidia GPU: calls and copies follow each other without the host's waiting."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from dspark_compiler.artifact import Artifact, EntrySpec
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.calls import Call, Fetched
from dspark_compiler.runtime.cuda import CudaRuntime
from dspark_compiler.runtime.fetches import Fetches
from dspark_compiler.runtime.gpu import GpuRuntime
from dspark_compiler.runtime.gpu_call import GpuCall
from dspark_compiler.runtime.gpu_context import FIRST_GPU, GpuContext
from dspark_compiler.runtime.gpu_memory import Described, Slab, slab_bytes, upload
from dspark_compiler.runtime.library import Function, import_tvm_ffi, load_cudart

# Puts weights into the tensors of their names, which hold nothing yet, before it returns or on the device's stream.
Fill = Callable[["GpuDevice", Mapping[str, Any]], None]


class GpuDevice(GpuContext):
    """See Device; ``fill`` makes weights where the artifact's own are not to be read."""

    is_late = True

    def __init__(self, cuda: GpuRuntime, where: tuple[int, int] = FIRST_GPU, fill: Fill | None = None) -> None:
        super().__init__(cuda, where)
        self.tensor_type: type = import_tvm_ffi().Tensor
        self._fill = fill
        self._fetches = Fetches(self.cuda, self.launches)
        self._slabs: list[Slab] = []

    def tensors(self, artifact: Artifact) -> dict[str, Any]:
        """See Device."""
        manifest = artifact.manifest
        self._require(manifest.params, manifest.states)
        weights, states = self.slab(manifest.params), self.slab(manifest.states, apart=self.apart)
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
        return self.launches

    def fetch(self, *tensors: Any) -> Fetched:
        """See Device; copies, so that calls made later do not change them."""
        return Fetched(self._fetches.fetch(tensors))

    def peak_memory_bytes(self) -> int:
        """See Device: what the GPU had less of after each allocation; nothing is given back before the end."""
        return self.used


def open_cuda(artifact: Artifact, fill: Fill | None = None) -> GpuDevice:
    """The GPU the artifact was opened for; the artifact's libraries are loaded.

    ``fill`` takes the place of the artifact's weights.

    Raises:
        DeviceError: CUDA cannot use it.
    """
    return GpuDevice(CudaRuntime(load_cudart(artifact), artifact.device), (FIRST_GPU[0], artifact.device), fill)
