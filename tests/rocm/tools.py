"""What a test of --target rocm needs of a machine, and code objects to look at."""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import tirx
from tvm.tirx.build import split_host_device_mods
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

from dspark_compiler import rocm_runtime
from dspark_compiler.backends.rocm import tools
from dspark_compiler.backends.rocm.backend import RocmBackend
from dspark_compiler.backends.rocm.build import module_bytes, register_pipeline
from dspark_compiler.backends.rocm.code_object import KernelInfo, read_kernels
from dspark_compiler.backends.rocm.container import MAGIC, unpack_module
from dspark_compiler.schedules.rocm.architectures import ARCHITECTURES

_OBJDUMPS = ("llvm-objdump-22", "llvm-objdump-21", "llvm-objdump-20", "llvm-objdump-19", "llvm-objdump")


def need_rocm() -> None:
    """Skips the test where nothing can be compiled for AMD's GPUs."""
    if missing := [*tools.missing(), *([] if rocm_runtime.library.is_built() else rocm_runtime.library.missing())]:
        pytest.skip(f"needs {' and '.join(missing)}")


@dataclass(frozen=True)
class CodeObject:
    """A module of kernels: what it says of each, by name, and the code of all."""

    description: dict[str, Any]
    kernels: dict[str, KernelInfo]
    code: bytes

    def instructions(self, folder: Path, name: str) -> list[str]:
        """The instructions of a kernel, a line each; skips without LLVM's tools."""
        tool = next(filter(None, map(shutil.which, _OBJDUMPS)), None)
        if tool is None:
            pytest.skip("needs llvm-objdump of LLVM 19 or later (Debian: llvm-19)")
        path = folder / "kernels.co"
        path.write_bytes(self.code)
        command = [tool, "-d", f"--disassemble-symbols={name}", "--no-show-raw-insn", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split("//")[0].strip() for line in text.splitlines() if line.startswith("\t")]


def code_object(data: bytes) -> CodeObject:
    """The module that bytes of a runtime module are."""
    description, code = unpack_module(data)
    return CodeObject(description, read_kernels(code), code)


def fits(made: CodeObject, arch: str) -> None:
    """Registers, local memory and threads of every kernel; arguments were compared when it was packed."""
    assert made.description["arch"] == arch
    assert {kernel["name"] for kernel in made.description["kernels"]} == set(made.kernels)
    for name, info in made.kernels.items():
        assert (info.vector_spills, info.scalar_spills, info.scratch_bytes) == (0, 0, 0), name
        assert info.wave == ARCHITECTURES[arch].wave, name
        assert info.most_threads == 256, name
        assert info.vector_registers <= 256, f"{name}: two waves a SIMD at least"
        assert info.shared_bytes <= 32 << 10, f"{name}: two work groups a compute unit at least"


def kernels_in(library: Path) -> CodeObject:
    """The module of kernels that an artifact's library holds."""
    data = library.read_bytes()
    return code_object(data[data.index(MAGIC) :])


def compiled(arch: str, functions: dict[str, tvm.tirx.PrimFunc]) -> CodeObject:
    """The kernels of scheduled functions; each is called NAME_kernel."""
    need_rocm()
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    module = tirx.transform.BindTarget(backend(arch).target)(module)
    lower, _, finish = PIPELINE_MAP[register_pipeline()]()
    _, device = split_host_device_mods(lower(module))
    ((target, kernels),) = device.items()
    return code_object(module_bytes(finish()(kernels), target))


@functools.cache
def backend(arch: str) -> RocmBackend:
    return RocmBackend(arch)


def fake_hip(folder: Path) -> Path:
    """Builds the fake libamdhip64 into a folder, which a process finds it in by LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = Path(__file__).parent / "fake_hip.c", folder / "libamdhip64.so.6"
    flags: Sequence[str] = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-lpthread"], check=True)
    return library
