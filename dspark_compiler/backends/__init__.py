"""Targets: how a lowered module becomes a library, and what a machine needs for that."""

from dspark_compiler.backends.base import Backend
from dspark_compiler.errors import BackendUnavailableError


def create_backend(target: str, arch: str | None) -> Backend:
    """The backend of a target for one architecture (None: this machine's).

    Raises:
        BackendUnavailableError: the target cannot be compiled for here, with what is missing.
        InputError: the architecture is not one the target knows.
    """
    if target == "cpu":
        from dspark_compiler.backends.cpu import CpuBackend

        return CpuBackend(arch)
    if target == "cuda":
        from dspark_compiler.backends.cuda import CudaBackend

        return CudaBackend(arch)
    if target == "vulkan":
        from dspark_compiler.backends.vulkan.backend import VulkanBackend

        return VulkanBackend(arch)
    raise BackendUnavailableError(f"--target {target}: not available in this version; use --target cpu, cuda or vulkan")
