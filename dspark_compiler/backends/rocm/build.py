"""TVM's hooks: how its AMDGPU code generator finds linker and libraries, and what becomes of its code."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir
from tvm.tirx import compilation_pipeline

from dspark_compiler.backends.rocm import intrinsics, tools
from dspark_compiler.backends.rocm.container import pack_module
from dspark_compiler.backends.rocm.device_library import device_library
from dspark_compiler.schedules.rocm.architectures import find_architecture
from dspark_compiler.schedules.tir_lowering import tir_lowering

PIPELINE = "dspark_rocm"

_HOOK = "target.build.rocm"
_LOADER = "ffi.Module.load_from_bytes.rocm"


@functools.cache
def register() -> None:
    """Makes TVM build for the target kind "rocm" with what is ours around its code generator; once, or TVM objects."""
    _generator()
    intrinsics.register()
    tvm.register_global_func(_HOOK, build, override=True)


def register_pipeline() -> str:
    """Makes the lowering known under the name returned, a ``tir_pipeline`` of relax.build and tvm.compile."""
    compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
    return PIPELINE


def build(module: Any, target: Any) -> Any:
    """A runtime module of the device functions of ``module``; needs the runtime library loaded."""
    return tvm_ffi.get_global_func(_LOADER)(module_bytes(module, target))


def module_bytes(module: Any, target: Any) -> bytes:
    """The kernels of a module of device functions, as the runtime library loads them.

    Raises:
        RuntimeError: TVM's, where a function does something there is nothing for.
    """
    arch = find_architecture(str(target.attrs["mcpu"]))
    packed: list[bytes] = []

    def keep(code: bytes, _form: str, functions: Any, _sources: Any) -> Any:
        packed.append(pack_module(arch.name, bytes(code), functions))
        return tvm_ffi.get_global_func(_LOADER)(packed[0])

    with tempfile.TemporaryDirectory(prefix="dspark-rocm-") as folder:
        own = Path(folder) / "device.ll"
        own.write_text(device_library(arch))
        libraries = [str(tools.find_bitcode()), str(own)]
        tvm.register_global_func("tvm_callback_rocm_bitcode_path", lambda: libraries, override=True)
        tvm.register_global_func("tvm_callback_rocm_link", lambda code: tools.link(bytes(code)), override=True)
        tvm.register_global_func("ffi.Module.create.rocm", keep, override=True)
        _generator()(module, target)
    return packed[0]


@functools.cache
def _generator() -> Any:
    """TVM's own code generator, asked for before another stands in its place."""
    return tvm_ffi.get_global_func(_HOOK)


def _pipeline() -> tuple[Any, Any, Any]:
    """Passes on the module, then those on host functions and on device functions."""
    lower = tir_lowering(s_tir.transform.LowerThreadAllreduce(), whole=False)
    return lower, compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes
