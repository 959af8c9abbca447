"""What compiling and running single kernels takes on each kind of GPU."""

import ctypes
from functools import cache

from dspark_compiler.backends import cuda_toolkit
from dspark_compiler.runtime.cuda import CudaRuntime
from dspark_compiler.runtime.gpu_context import FIRST_GPU, GpuContext
from dspark_compiler.runtime.vulkan import VulkanRuntime

_FIRST_VULKAN = (7, 0)  # DLPack's type and number


def ready_to_compile(kind: str) -> str:
    """The TIR pipeline that kernels for targets of a kind, "cuda" or "vulkan", are compiled by."""
    if kind == "vulkan":
        from dspark_compiler.backends.vulkan import register
        from dspark_compiler.backends.vulkan.pipeline import register_pipeline as vulkan_pipeline
        from dspark_compiler.vulkan_runtime import library

        library.load()
        register()
        return vulkan_pipeline()
    from dspark_compiler.schedules.cuda.dependent_launch import register_pipeline

    cuda_toolkit.prepare()
    return register_pipeline()


@cache
def context_of(kind: str) -> GpuContext:
    """This process' context on the first device; nothing is given back to other work while it is kept."""
    if kind == "vulkan":
        from dspark_compiler.vulkan_runtime import library

        library.load()
        return GpuContext(VulkanRuntime(0), _FIRST_VULKAN)
    cuda_toolkit.prepare()
    return GpuContext(CudaRuntime(ctypes.CDLL("libcudart.so.13")), FIRST_GPU)
