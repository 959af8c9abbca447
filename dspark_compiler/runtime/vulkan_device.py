"""Running on a Vulkan device: as on an Nvidia GPU, with recordings in place of graphs."""

from collections.abc import Iterator
from contextlib import contextmanager

from dspark_compiler.artifact import Artifact
from dspark_compiler.runtime.gpu_device import Fill, GpuDevice
from dspark_compiler.runtime.vulkan import VulkanRuntime

_DLPACK_TYPE = 7


class VulkanDevice(GpuDevice):
    """See Device and GpuDevice."""

    apart = True

    def __init__(self, vulkan: VulkanRuntime, index: int, fill: Fill | None = None) -> None:
        super().__init__(vulkan, (_DLPACK_TYPE, index), fill)
        self.largest = vulkan.largest
        self._vulkan = vulkan

    @contextmanager
    def counted(self) -> Iterator[None]:
        """See GpuContext; the library counts exactly what a driver's numbers only hint at."""
        before = self._vulkan.given_back()
        yield
        self.used = self._vulkan.peak_memory_bytes()
        self._lane.epoch += self._vulkan.given_back() > before


def open_vulkan(artifact: Artifact, fill: Fill | None = None) -> VulkanDevice:
    """The device the artifact was opened for; the artifact's libraries are loaded.

    ``fill`` takes the place of the artifact's weights.

    Raises:
        DeviceError: it cannot be used.
    """
    return VulkanDevice(VulkanRuntime(artifact.device), artifact.device, fill)
