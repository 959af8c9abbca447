"""Kernels for Vulkan: lowered and validated where there are SPIR-V's tools, run where there is a device."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.tirx.build import split_host_device_mods
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

from dspark_compiler.backends.vulkan import module_bytes, register, unpack_kernels
from dspark_compiler.backends.vulkan.pipeline import register_pipeline

_DEVICE = {
    "kind": "vulkan",
    "max_threads_per_block": 256,
    "max_shared_memory_per_block": 32768,
    **{f"supports_{name}": True for name in ("float16", "int8", "int16", "int64", "8bit_buffer", "16bit_buffer")},
}


@dataclass(frozen=True)
class Shader:
    """A kernel: what the module says of it, and its SPIR-V."""

    entry: dict[str, Any]
    code: bytes

    def disassembly(self) -> str:
        """Its instructions, a line each; skips without SPIR-V's tools."""
        return _run_tool("spirv-dis", self.code).stdout.decode()


def target(lanes: int = 1) -> tvm.target.Target:
    """A device whose subgroups have at least ``lanes`` invocations."""
    return tvm.target.Target(_DEVICE | {"thread_warp_size": lanes}, host="llvm")


def shaders_of(functions: dict[str, tvm.tirx.PrimFunc], lanes: int = 1) -> list[Shader]:
    """The kernels of scheduled functions."""
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    module = tirx.transform.BindTarget(target(lanes))(module)
    lower, _, finish = PIPELINE_MAP[register_pipeline()]()
    _, device = split_host_device_mods(lower(module))
    return [Shader(*kernel) for each in device.values() for kernel in unpack_kernels(module_bytes(finish()(each)))]


def validate(shader: Shader) -> None:
    """Fails where a shader is not valid for Vulkan 1.2; skips without SPIR-V's tools."""
    done = _run_tool("spirv-val", shader.code, "--target-env", "vulkan1.2", "--scalar-block-layout")
    assert done.returncode == 0, (shader.entry["name"], done.stdout + done.stderr)


def build(module: tvm.IRModule, lanes: int = 1) -> Any:
    """The executable of a Relax module whose functions are scheduled."""
    register()
    with target(lanes):
        return relax.build(module, target(lanes), tir_pipeline=register_pipeline())


def run(function: tvm.tirx.PrimFunc, *arrays: np.ndarray, lanes: int = 1) -> list[np.ndarray]:
    """All arrays as a scheduled function leaves them."""
    return compiled(function, lanes)(*arrays)


def compiled(function: tvm.tirx.PrimFunc, lanes: int = 1) -> Callable[..., list[np.ndarray]]:
    """The same for one that is called several times."""
    start = started(function, lanes)
    return lambda *arrays: [tensor.numpy() for tensor in start(*arrays)]


def started(function: tvm.tirx.PrimFunc, lanes: int = 1) -> Callable[..., list[Any]]:
    """The same, but its tensors, which nobody has waited for."""
    register()
    named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(named, target(lanes), tir_pipeline=register_pipeline())

    def call(*arrays: np.ndarray) -> list[Any]:
        tensors = [tvm.runtime.tensor(array, tvm.device("vulkan", 0)) for array in arrays]
        built["main"](*tensors)
        return tensors

    return call


def _run_tool(name: str, code: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which(name) is None:
        pytest.skip(f"needs {name} (Debian: spirv-tools)")
    return subprocess.run([name, *options, "-"], input=code, capture_output=True, check=False)
