"""How fast a GPU copies its own memory: the limit of decoding one sequence there."""

import ctypes
import statistics

from dspark_compiler.artifact import Artifact
from dspark_compiler.artifact.host import CUDA
from dspark_compiler.bench.vulkan_reads import VulkanReads
from dspark_compiler.runtime.cuda import CudaRuntime
from dspark_compiler.runtime.gpu import GpuRuntime
from dspark_compiler.runtime.library import load_cudart, load_libraries
from dspark_compiler.runtime.ort_provider import choose_provider, load_provider
from dspark_compiler.runtime.rocm import open_runtime
from dspark_compiler.runtime.vulkan import VulkanRuntime

_BUFFER_BYTES = 1 << 30  # far more than the second-level cache holds
_COPIES = 4


class CopyBandwidth:
    """Copies from one buffer to another; what is read and what is written both count.

    See ReadBandwidth, which does the same for the host: ``measure`` is for one moment, ``bytes_per_second`` the median
    of all.
    """

    def __init__(self, cuda: GpuRuntime) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()
        self._began, self._ended = cuda.event(timed=True), cuda.event(timed=True)
        self._rounds: list[float] = []

    @property
    def bytes_per_second(self) -> float:
        """The median of all rounds."""
        return statistics.median(self._rounds)

    def measure(self, times: int = 3) -> float:
        """Copies so many times; returns the best, in bytes a second. The buffers live no longer."""
        cuda, stream = self._cuda, self._stream
        source, to = cuda.allocate(_BUFFER_BYTES), cuda.allocate(_BUFFER_BYTES)
        cuda.zero(source, _BUFFER_BYTES, stream)
        best = 0.0
        for _ in range(times):
            cuda.record(self._began, stream)
            for _ in range(_COPIES):
                cuda.copy(to, source, _BUFFER_BYTES, stream)
            cuda.record(self._ended, stream)
            cuda.wait(self._ended)
            best = max(best, 2 * _COPIES * _BUFFER_BYTES / cuda.seconds(self._began, self._ended))
        cuda.release(source)
        cuda.release(to)
        self._rounds.append(best)
        return best


def of_artifact(artifact: Artifact) -> CopyBandwidth | VulkanReads:
    """By the artifact's own runtime library, on the device it was opened for.

    Raises:
        ArtifactError: it cannot be loaded.
        DeviceError: the GPU cannot be used.
    """
    if artifact.manifest.target.kind == "cuda":
        return CopyBandwidth(CudaRuntime(load_cudart(artifact), artifact.device))
    if artifact.manifest.target.kind == "onnxruntime":
        load_provider(choose_provider(artifact))
        return CopyBandwidth(CudaRuntime(ctypes.CDLL(f"libcudart.so.{CUDA[0]}"), artifact.device))
    if artifact.manifest.target.kind == "rocm":
        return CopyBandwidth(open_runtime(artifact))
    load_libraries(artifact)
    return VulkanReads(VulkanRuntime(artifact.device), artifact.device)
