"""What compiling for Nvidia GPUs needs of a machine, which need not have one: CUDA's compiler, and TVM's CUDA runtime.

TVM wraps device code in a module of its CUDA runtime, and embeds the source in its place where that runtime is not
loaded. The runtime links to the driver's library, so on a machine without a driver a stand-in takes its name.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
import tvm_ffi

from dspark_compiler.errors import BackendUnavailableError, LoweringError

# What TVM's CUDA runtime asks of the driver; none of it is called while compiling.
_DRIVER_SYMBOLS = (
    *("cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString", "cuLaunchKernelEx"),
    *("cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled"),
)
_INSTALL = "install CUDA 13's nvcc, or pip install 'dspark-compile[cuda]'"


def find_nvcc() -> str | None:
    """Path of nvcc, from CUDA_HOME, PATH, where its installer puts it, or from Nvidia's Python packages."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    places += [str(home / "bin") for home in _package_homes()]
    return next((found for place in places if (found := shutil.which("nvcc", path=place))), None)


def find_cudart() -> Path | None:
    """CUDA's runtime library: of this process' Python packages, or of an installed CUDA 13."""
    return next((path for path in _cudart_candidates() if path.is_file()), None)


def _package_homes() -> list[Path]:
    """Where Nvidia's Python packages have put CUDA 13, by parts."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) / "cu13" for folder in (spec.submodule_search_locations or ())] if spec is not None else []


def _cudart_candidates() -> Iterator[Path]:
    name = "libcudart.so.13"
    for home in _package_homes():
        yield home / "lib" / name
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if folder:
            yield Path(folder) / "lib64" / name
            yield Path(folder) / "lib" / name
    nvcc = find_nvcc()
    if nvcc is not None:
        home_of = Path(nvcc).resolve().parents[1]
        yield home_of / "lib64" / name
        yield home_of / "lib" / name
    yield from sorted(Path("/usr/local").glob(f"cuda-13*/lib*/{name}"))


def runtime_libraries() -> list[Path]:
    """TVM's CUDA runtime, and CUDA's, which it needs.

    Raises:
        BackendUnavailableError: CUDA's runtime library is not here.
    """
    cudart = find_cudart()
    if cudart is None:
        raise BackendUnavailableError(f"--target cuda: no libcudart.so.13 found; {_INSTALL}")
    return [cudart.resolve(), Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"]


@cache
def prepare() -> None:
    """Makes TVM able to compile for CUDA in this process.

    Raises:
        BackendUnavailableError: there is no nvcc, or not CUDA's runtime library.
    """
    if find_nvcc() is None:
        raise BackendUnavailableError(f"--target cuda: nvcc not found; {_INSTALL}")
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is None:
        cudart, runtime = runtime_libraries()
        _load_driver()
        ctypes.CDLL(str(cudart), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", _compile, override=True)


def _load_driver() -> None:
    """Loads the driver's library, or one of its name that answers every call with an error."""
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
        return
    except OSError:
        pass
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise BackendUnavailableError("--target cuda: no C compiler found to link with; install gcc or clang")
    source = "\n".join(f"int {symbol}(void) {{ return 100; }}" for symbol in _DRIVER_SYMBOLS)  # CUDA_ERROR_NO_DEVICE
    with TemporaryDirectory(prefix="dspark-cuda-") as folder:
        path = f"{folder}/libcuda.so.1"
        command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", path, "-Wl,-soname,libcuda.so.1"]
        subprocess.run(command, input=source.encode(), check=True, capture_output=True)
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


def _compile(code: str) -> bytes:
    """TVM's hook: CUDA source to code for the architecture of the target at hand."""
    arch = str(tvm.target.Target.current(allow_none=False).attrs["arch"])
    nvcc = find_nvcc()
    assert nvcc is not None, "prepare() has found one"
    return compile_source(code, arch, nvcc)


def compile_source(code: str, arch: str, nvcc: str, options: tuple[str, ...] = ()) -> bytes:
    """A cubin of CUDA source for "sm_90a" or its like.

    Raises:
        LoweringError: nvcc refused it.
    """
    number = arch.removeprefix("sm_")
    with TemporaryDirectory(prefix="dspark-cuda-") as folder:
        source, binary = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        source.write_text(code, encoding="utf-8")
        command = [nvcc, "-cubin", "-O3", "-std=c++17", f"-gencode=arch=compute_{number},code=sm_{number}", *options]
        done = subprocess.run([*command, "-o", str(binary), str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            raise LoweringError(f"--target cuda: nvcc refused generated code for {arch}: {'; '.join(errors[:3])}")
        return binary.read_bytes()
