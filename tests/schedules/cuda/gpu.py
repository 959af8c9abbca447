"""Kernels of tests for Nvidia GPUs: compiled where there is nvcc, run where there is a GPU."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from dspark_compiler.backends import cuda_toolkit
from dspark_compiler.schedules.cuda.dependent_launch import register_pipeline


def target(arch: str) -> tvm.target.Target:
    """The target as the CUDA backend makes it."""
    device = {"kind": "cuda", "arch": arch, "max_threads_per_block": 1024, "thread_warp_size": 32}
    return tvm.target.Target(device | {"max_shared_memory_per_block": 232448}, host="llvm")


def compile_for(functions: dict[str, tvm.tirx.PrimFunc], arch: str) -> Any:
    """The compiled module; skips without nvcc."""
    if cuda_toolkit.find_nvcc() is None:
        pytest.skip("needs nvcc")
    cuda_toolkit.prepare()
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    with target(arch):
        return tvm.compile(module, target=target(arch), tir_pipeline=register_pipeline())


@dataclass(frozen=True)
class Report:
    """Compiled kernels: their CUDA source, and what ptxas says of them."""

    source: str
    resources: str

    @property
    def kernels(self) -> int:
        """How many there are."""
        return self.resources.count("spill stores")

    @property
    def spills(self) -> bool:
        """Whether any register of one leaves for memory."""
        return self.resources.count("0 bytes stack frame, 0 bytes spill stores") != self.kernels


def report_of(functions: dict[str, tvm.tirx.PrimFunc], arch: str) -> Report:
    """Compiles as ``compile_for`` does, once, and asks ptxas for its report."""
    found: list[Report] = []

    def compile_once(code: str) -> bytes:
        with TemporaryDirectory() as folder:
            source, binary = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
            source.write_text(code, encoding="utf-8")
            number = arch.removeprefix("sm_")
            command = [str(cuda_toolkit.find_nvcc()), "-cubin", "-std=c++17", "-Xptxas", "-v", "-o", str(binary)]
            command += [f"-gencode=arch=compute_{number},code=sm_{number}", str(source)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(Report(code, done.stderr))
            return binary.read_bytes()

    hook = "tvm_callback_cuda_compile"
    if cuda_toolkit.find_nvcc() is None:
        pytest.skip("needs nvcc")
    cuda_toolkit.prepare()
    usual = tvm_ffi.get_global_func(hook)
    tvm_ffi.register_global_func(hook, compile_once, override=True)
    try:
        compile_for(functions, arch)
    finally:
        tvm_ffi.register_global_func(hook, usual, override=True)
    return found[0]


def gpu() -> Any:
    """The GPU; skips without one."""
    device = tvm.cuda(0)
    if not device.exist:
        pytest.skip("needs an NVIDIA GPU")
    return device


def call(function: Any, arrays: list[np.ndarray], outputs: int = 1) -> list[np.ndarray]:
    """Runs function(arrays…), of which the last ``outputs`` are overwritten, and returns those."""
    tensors = [tvm.runtime.tensor(array, gpu()) for array in arrays]
    function(*tensors)
    return [tensor.numpy() for tensor in tensors[-outputs:]]


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """Norm of the difference over the norm of what is exact."""
    return float(np.linalg.norm(found.astype(float) - exact) / np.linalg.norm(exact))
