"""Running on an AMD GPU: HIP's runtime library in CUDA's place, kernels through our ROCm library."""

from dspark_compiler.artifact import Artifact
from dspark_compiler.artifact.amd import load_hip
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu_device import Fill, GpuDevice
from dspark_compiler.runtime.gpu_library import GpuLibrary

_DLPACK_TYPE = 10


class RocmRuntime(GpuLibrary):
    """See GpuRuntime and GpuLibrary."""

    prefix = "hip"
    renamed = {  # noqa: RUF012 - a constant of the class
        "HostAlloc": "HostMalloc",
        "FreeHost": "HostFree",
        "GraphInstantiate": "GraphInstantiateWithFlags",
    }


def open_runtime(artifact: Artifact) -> RocmRuntime:
    """HIP's runtime library on the GPU the artifact was opened for.

    Raises:
        DeviceError: there is none.
    """
    library = load_hip()
    if library is None:
        raise DeviceError("no HIP runtime (libamdhip64.so) found; install AMD's driver and ROCm 6 or later")
    return RocmRuntime(library, artifact.device)


def open_rocm(artifact: Artifact, fill: Fill | None = None) -> GpuDevice:
    """The GPU the artifact was opened for; the artifact's libraries are loaded.

    ``fill`` takes the place of the artifact's weights.

    Raises:
        DeviceError: HIP cannot use it.
    """
    return GpuDevice(open_runtime(artifact), (_DLPACK_TYPE, artifact.device), fill)
