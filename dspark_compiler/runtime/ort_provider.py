"""Which of ONNX Runtime's execution providers runs an artifact: CUDA's where that can, or else the host's."""

from dataclasses import dataclass
from typing import Any

from dspark_compiler.artifact import Artifact
from dspark_compiler.artifact.nvidia import find_driver
from dspark_compiler.errors import DeviceError, InputError

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_REMEDY = "pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries it needs"
_ON_CUDA = "float16"  # what GroupQueryAttention computes in there


@dataclass(frozen=True)
class Provider:
    """Where sessions run.

    Attributes:
        name: as ONNX Runtime calls it.
        device: where weights and states are, "cpu" or "cuda".
        number: of the GPU.
    """

    name: str = _CPU
    device: str = "cpu"
    number: int = 0

    @property
    def order(self) -> list[Any]:
        """What a session is asked for; the host takes nodes the GPU has no kernels for."""
        return [_CPU] if self.device == "cpu" else [(self.name, {"device_id": self.number}), _CPU]


def choose_provider(artifact: Artifact) -> Provider:
    """The provider for an artifact on the device it was opened for.

    Raises:
        InputError: there is no device of that number.
    """
    gpus = _gpus() if artifact.manifest.dtype == _ON_CUDA else 0
    number = artifact.device
    if not gpus and number:
        raise InputError(
            f"--device {number}: {artifact.path} runs on ONNX Runtime's processor, which is one device, 0; GPUs take "
            f"artifacts of --dtype {_ON_CUDA}, and the package onnxruntime-gpu"
        )
    if not 0 <= number < max(gpus, 1):
        raise InputError(f"--device {number}: there is none of this number; ONNX Runtime has GPUs 0 to {gpus - 1}")
    return Provider(_CUDA, "cuda", number) if gpus else Provider()


def load_provider(provider: Provider) -> None:
    """Loads the libraries a provider needs, from wherever Python packages have put them."""
    if provider.device == "cuda":
        import onnxruntime

        onnxruntime.preload_dlls()


def check_started(session: Any, provider: Provider) -> None:
    """Makes sure that a session is run by the provider it was opened for: ONNX Runtime itself takes another silently.

    Raises:
        DeviceError: the provider did not start.
    """
    if provider.name not in session.get_providers():
        raise DeviceError(f"{provider.name}: does not start; {CUDA_REMEDY}")


def _gpus() -> int:
    """How many GPUs ONNX Runtime can be asked for."""
    import onnxruntime

    driver = find_driver() if _CUDA in onnxruntime.get_available_providers() else None
    return 0 if driver is None else len(driver.gpus)
