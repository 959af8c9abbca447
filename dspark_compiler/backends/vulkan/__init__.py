"""Vulkan: TIR as SPIR-V, and TVM's hook for it."""

from dspark_compiler.backends.vulkan.build import module_bytes, register
from dspark_compiler.backends.vulkan.container import unpack_kernels

__all__ = ["module_bytes", "register", "unpack_kernels"]
