"""An artifact's ONNX models as sessions of ONNX Runtime, which is imported when the first one is asked for."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dspark_compiler.artifact import Artifact, EntrySpec
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.ort_provider import Provider, check_started

_OF_EVERY_TOKEN = ("decode", "verify", "draft")


def session_options(artifact: Artifact, spec: EntrySpec) -> Mapping[str, str]:
    """Settings of an entry point's session, as ONNX Runtime names them.

    What runs for every token has its own copy of the weights, prepacked: SmolLM2's products of one row then take three
    quarters of the time, those of eight rows three fifths. Chunks of a prompt, which gain less, read the weights where
    they are mapped, all of them in one place. Codes have no fast kernels without prepacking.
    """
    prepacked = spec.kind in _OF_EVERY_TOKEN or artifact.manifest.quantization is not None
    return {"session.disable_prepacking": "0" if prepacked else "1"}


def session_openers(artifact: Artifact, threads: int) -> dict[str, Callable[..., Any]]:
    """By entry point, what opens its session; one that does nothing has no model, and its opener gives None.

    Raises:
        InputError: a number of threads that cannot be had.
    """
    if threads < 1:
        raise InputError(f"--threads {threads}: must be at least 1")
    return {
        name: partial(open_session, artifact.path / f"{name}.onnx", threads, session_options(artifact, spec))
        if artifact.has(f"{name}.onnx")
        else _nothing
        for name, spec in artifact.manifest.entry_points.items()
    }


def open_session(
    path: Path, threads: int, settings: Mapping[str, str], provider: Provider, weights: Mapping[str, Any]
) -> Any:
    """The session of a model; ``weights`` are OrtValues on the provider's device that take the place of the files'.

    Raises:
        ArtifactError: ONNX Runtime cannot use the model.
        DeviceError: the provider does not start.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    for name, value in weights.items():
        options.add_initializer(name, value)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=provider.order)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot use it: {reason}") from error
    check_started(session, provider)
    return session


def _nothing(*_: Any) -> None:
    return None
