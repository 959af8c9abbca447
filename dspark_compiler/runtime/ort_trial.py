"""Whether an execution provider computes what ONNX Runtime's processor does, asked of an artifact's own model."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import Artifact
from dspark_compiler.runtime.ort_device import OrtDevice
from dspark_compiler.runtime.ort_provider import Provider, choose_provider
from dspark_compiler.runtime.ort_session import session_openers

# Of the largest logit. SmolLM2's float16 models were 0.001 from float32's; a cache that is not read moves them by 1.
_ROUNDING = 0.05


def difference(artifact: Artifact, functions: dict[str, Callable[..., Any]], provider: Provider) -> float:
    """By how much logits differ from the processor's after two chunks of a prompt, of the largest one."""
    wanted, found = (_logits(artifact, functions, OrtDevice(place)) for place in (Provider(), provider))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _logits(artifact: Artifact, functions: dict[str, Callable[..., Any]], device: OrtDevice) -> NDArray[np.float32]:
    """The second chunk's, which attends to the first one's keys and values in the cache."""
    prefills = [item for item in artifact.manifest.entry_points.items() if item[1].kind == "prefill"]
    name, spec = min(prefills, key=lambda item: item[1].width)
    call = device.call(spec, functions[name], device.tensors(artifact))
    width = min(spec.width, artifact.manifest.max_seq_len // 2)
    index = np.minimum(np.arange(spec.width), width - 1)
    made: dict[str, Any] = {}
    for start in (0, width):
        ids = (7 * (start + index) + 1) % artifact.manifest.model.vocab_size
        made = call(input_ids=ids, positions=start + index, sequence=0, length=start, count=width)
    logits: NDArray[np.float32] = device.fetch(made["logits"]).arrays()[0]
    return logits


def open_onnxruntime(artifact: Artifact) -> OrtDevice:
    """The device an artifact is run on: a GPU that can and that computes the same, else the processor.

    Raises:
        InputError: there is none of the number it was opened for.
        DeviceError: the GPU cannot be used.
    """
    provider = choose_provider(artifact)
    if provider.device == "cpu":
        return OrtDevice(provider)
    import onnxruntime

    onnxruntime.preload_dlls()
    functions = session_openers(artifact, 1)
    apart = difference(artifact, functions, provider)
    if apart <= _ROUNDING:  # also false where it is no number
        return OrtDevice(provider)
    why = f"ONNX Runtime's {provider.name} computes other logits than its processor ({apart:.2g} of the largest)"
    return OrtDevice(Provider(), f"{why}, so that the processor runs this artifact")
