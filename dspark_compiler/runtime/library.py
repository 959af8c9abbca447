"""Loads an artifact's compiled library with tvm_ffi alone: no tvm package, no torch."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.lanes import make_way
from dspark_compiler.runtime.ort_session import session_openers

MODEL_LIBRARY = "lib/model.so"

_RUNTIME = "lib/libtvm_runtime.so"
_THREADS_VARIABLE = "TVM_NUM_THREADS"
_CUDART = "lib/libcudart.so"  # the beginning of its name
_POOLED_ALLOCATOR = 2  # keeps freed buffers for the next step

_OURS = {kind: f"lib/libdspark_{kind}" for kind in ("rocm", "vulkan")}  # the beginnings of their names

# DLPack's numbers of the devices that targets use besides the host.
_DEVICE_TYPES = {"cuda": 2, "vulkan": 7, "rocm": 10}

Function = Callable[..., Any]


def import_tvm_ffi() -> ModuleType:
    """tvm_ffi, imported without torch unless torch is there already."""
    # Its import tries to import torch, to convert torch tensors, which costs a second and hundreds of megabytes that
    # running an artifact has no use for. None in sys.modules makes that import fail as if torch were not installed.
    hide_torch = "torch" not in sys.modules and "tvm_ffi" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi
    finally:
        if hide_torch:
            del sys.modules["torch"]
    module: ModuleType = tvm_ffi
    return module


def load_libraries(artifact: Artifact) -> None:
    """Loads the runtime libraries an artifact brings, as far as this process lacks them.

    Raises:
        ArtifactError: one cannot be loaded.
    """
    import_tvm_ffi()
    for library in _runtime_libraries(artifact):
        path = artifact.path.absolute() / library
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be loaded: {error}; compile again") from error


def load_functions(artifact: Artifact, threads: int | None) -> dict[str, Function]:
    """The compiled entry points of an artifact, ready to be called; for ONNX Runtime, what opens their sessions.

    ``threads`` bounds the threads kernels use; None takes all cores.

    Raises:
        ArtifactError: the library cannot be loaded, or lacks an entry point.
        InputError: this process runs compiled code with another number of threads already.
    """
    if artifact.manifest.target.kind == "onnxruntime":
        return session_openers(artifact, threads or available_cores())
    tvm_ffi = import_tvm_ffi()
    running = tvm_ffi.get_global_func("runtime.NumThreads", allow_missing=True) is not None
    _set_threads(threads, running)
    path = artifact.path.absolute() / MODEL_LIBRARY
    try:
        load_libraries(artifact)
        machine = tvm_ffi.load_module(str(path))["vm_load_executable"]()
        kind, number, *_ = devices = _devices(artifact)
        make_way((kind, number))
        machine["vm_initialization"](*devices)
        return {name: machine[name] for name in artifact.manifest.entry_points}
    except (OSError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{path}: cannot be loaded: {reason}; compile again") from error


def _devices(artifact: Artifact) -> tuple[int, ...]:
    """Type, number and allocator of each device compiled code uses, the host's last."""
    on_host = (1, 0, _POOLED_ALLOCATOR)
    kind = _DEVICE_TYPES.get(artifact.manifest.target.kind)
    return on_host if kind is None else (kind, artifact.device, _POOLED_ALLOCATOR, *on_host)


def load_cudart(artifact: Artifact) -> ctypes.CDLL:
    """CUDA's runtime library, which an artifact for Nvidia GPUs carries.

    Raises:
        ArtifactError: it cannot be loaded.
    """
    for name in _beginning(artifact, _CUDART):
        path = artifact.path.absolute() / name
        try:
            return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be loaded: {error}; compile again") from error
    raise ArtifactError(f"{artifact.path}: lacks CUDA's runtime library, {_CUDART}.*; compile again")


def _beginning(artifact: Artifact, start: str) -> list[str]:
    return [name for name in artifact.manifest.files if name.startswith(start)]


def _runtime_libraries(artifact: Artifact) -> list[str]:
    """Those this process lacks, each after what it links to: CUDA's runtime, TVM's, and those for devices.

    A process has one runtime: loading a second copy would register its functions twice and abort.
    """
    find = import_tvm_ffi().get_global_func
    devices = [name for name in _beginning(artifact, "lib/libtvm_runtime") if name != _RUNTIME]
    missing = [_RUNTIME] if find("runtime.NumThreads", allow_missing=True) is None else []
    kind = artifact.manifest.target.kind
    if kind == "cuda":
        lacks = find("device_api.cuda", allow_missing=True) is None
        return [*missing, *_beginning(artifact, _CUDART), *devices] if lacks else missing
    if kind in _OURS:
        lacks = find(f"device_api.{kind}", allow_missing=True) is None
        return [*missing, *_beginning(artifact, _OURS[kind])] if lacks else missing
    return [*missing, *devices] if missing else []


def available_cores() -> int:
    """Physical cores this process may run on: what hardware threads share, one kernel thread uses up."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus)
    try:
        return len({path.read_text() for path in siblings})
    except OSError:
        return len(cpus)


def _set_threads(threads: int | None, running: bool) -> None:
    if threads is None:
        # Left alone, the runtime takes half the cores of an x86 machine for hardware threads of the other half. It
        # looks at the variable when it first runs something: in a process that compiles, long after it is loaded.
        os.environ.setdefault(_THREADS_VARIABLE, str(available_cores()))
        return
    if threads < 1:
        raise InputError(f"--threads {threads}: must be at least 1")
    if running and os.environ.get(_THREADS_VARIABLE) != str(threads):
        raise InputError(f"--threads {threads}: this process runs compiled code already; start a new one")
    os.environ[_THREADS_VARIABLE] = str(threads)
