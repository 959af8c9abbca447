"""TVM's hook: a module of device functions becomes a runtime module of Vulkan kernels."""

from typing import Any

import tvm
import tvm_ffi

from dspark_compiler.backends.vulkan.container import pack_kernels
from dspark_compiler.backends.vulkan.kernel import compile_kernel

_HOOK = "target.build.vulkan"
_LOADER = "ffi.Module.load_from_bytes.vulkan"


def register() -> None:
    """Makes TVM build for the target kind "vulkan" with this code generator."""
    tvm.register_global_func(_HOOK, build, override=True)


def build(module: Any, target: Any) -> Any:
    """A runtime module of the device functions of ``module``; needs the runtime library loaded.

    Raises:
        LoweringError: a function does something Vulkan has nothing for.
    """
    return tvm_ffi.get_global_func(_LOADER)(module_bytes(module))


def module_bytes(module: Any) -> bytes:
    """The kernels of a module of device functions, as the runtime library loads them.

    Raises:
        LoweringError: a function does something Vulkan has nothing for.
    """
    kernels = []
    for variable, function in module.functions.items():
        symbol = function.attrs.get("global_symbol") if function.attrs else None
        kernels.append(compile_kernel(str(symbol or variable.name_hint), function))
    return pack_kernels(kernels)
