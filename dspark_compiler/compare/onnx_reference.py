"""The source's ``.onnx`` file as it is, run by ONNX Runtime on the CPU. V: vocabulary."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.onnx.source import LoadedOnnx

_ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)


class OnnxReference:
    """See Reference: the whole text in one call, with a past of no tokens.

    Raises:
        InputError: ONNX Runtime cannot run the file.
    """

    name = "ONNX Runtime"

    def __init__(self, model: LoadedOnnx) -> None:
        self._path, self._inputs = model.path, model.decoder.inputs
        self.exact = model.decoder.exact
        options = SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            raise self._failed(error) from error
        self._types = {entry.name: entry.type for entry in self._session.get_inputs()}

    def logits(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See Reference; one chunk."""
        feeds: dict[str | None, NDArray[np.generic]] = {}
        for value, tensor in self._inputs.feeds(1, len(tokens)).items():
            if value.name not in self._types:
                continue
            kind = _NUMPY[self._types[value.name]]
            feeds[value.name] = np.zeros(tuple(tensor.shape), kind) if tensor.is_meta else tensor.numpy().astype(kind)
        feeds[self._inputs.ids.name] = np.asarray([tokens], _NUMPY[self._types[self._inputs.ids.name]])
        try:
            (logits,) = self._session.run(["logits"], feeds)
        except _ERRORS as error:
            raise self._failed(error) from error
        yield logits[0, first:].astype(np.float32)

    def _failed(self, error: Exception) -> InputError:
        reason = str(error).strip().splitlines()[0]
        return InputError(f"{self._path}: ONNX Runtime cannot run it ({reason}); compile with --no-check")


_NUMPY = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
