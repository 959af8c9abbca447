"""Where an artifact runs: the seam between the executor, which knows what to call, and the machine that does it."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from dspark_compiler.artifact import Artifact, EntrySpec
from dspark_compiler.runtime.calls import Call, Fetched
from dspark_compiler.runtime.library import Function


class Device(Protocol):
    """Holds tensors and runs calls, in the order they are made.

    Attributes:
        is_late: whether it has its own clock, so that what it does takes no time until somebody waits.
        tensor_type: what its calls return and take.
        obstacle: why calls are slower than they could be here, one sentence; None where nothing is in the way.
    """

    is_late: bool
    tensor_type: type
    obstacle: str | None

    def tensors(self, artifact: Artifact) -> dict[str, Any]:
        """The artifact's weights and its states, which are zero, by name.

        Raises:
            ArtifactError: the weights cannot be read.
            DeviceError: they do not fit.
        """

    def call(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> Call:
        """An entry point; ``shared`` are ``tensors``."""

    def together(self) -> AbstractContextManager[None]:
        """Calls made inside may be put off to its end, to be one launch; none of them is made twice there."""

    def fetch(self, *tensors: Any) -> Fetched:
        """Tensors' numbers as they are when all calls made so far are over; shared with them, or copies."""

    def peak_memory_bytes(self) -> int:
        """The most memory that running took on the device."""


def open_device(artifact: Artifact) -> Device:
    """The device an artifact was opened for; its libraries are loaded.

    Raises:
        DeviceError: it cannot be used.
    """
    if artifact.manifest.target.kind == "cuda":
        from dspark_compiler.runtime.gpu_device import open_cuda

        return open_cuda(artifact)
    if artifact.manifest.target.kind == "vulkan":
        from dspark_compiler.runtime.vulkan_device import open_vulkan

        return open_vulkan(artifact)
    if artifact.manifest.target.kind == "onnxruntime":
        from dspark_compiler.runtime.ort_device import open_onnxruntime

        return open_onnxruntime(artifact)
    if artifact.manifest.target.kind == "rocm":
        from dspark_compiler.runtime.rocm import open_rocm

        return open_rocm(artifact)
    from dspark_compiler.runtime.cpu_device import CpuDevice

    return CpuDevice()
