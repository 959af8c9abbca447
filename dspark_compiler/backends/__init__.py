"""Targets: how a lowered module becomes a library, and what a machine needs for that."""

from dspark_compiler.backends.base import Backend
from dspark_compiler.errors import InputError


def create_backend(target: str, arch: str | None) -> Backend:
    """The backend of a target for one architecture (None: this machine's).

    Raises:
        BackendUnavailableError: the target cannot be compiled for here, with what is missing.
        InputError: the target, or the architecture, is not one there is.
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
    if target == "rocm":
        from dspark_compiler.backends.rocm.backend import RocmBackend

        return RocmBackend(arch)
    raise InputError(f"--target {target}: there is none of this name")
