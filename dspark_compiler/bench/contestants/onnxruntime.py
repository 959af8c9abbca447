"""ONNX Runtime on an export of the source model, with past keys and values bound from one step's output to the next."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import GraphOptimizationLevel, InferenceSession, OrtValue, SessionOptions

from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.memory import host_memory
from dspark_compiler.errors import DSparkError, InputError

# Where a session runs, what its kernels there compute in, and the types of weights that makes a fair comparison of.
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"cpu": "float32", "cuda": "float16"}


class OnnxRuntime:
    """See Contestant. On a GPU, keys and values stay there, and so do all but the logits.

    Raises:
        InputError: weights of a type its kernels do not have, or an ONNX Runtime without kernels for the GPU.
        DSparkError: the model cannot be exported.
    """

    def __init__(self, setup: Setup) -> None:
        _check(setup)
        self._device = setup.device
        self.memory = host_memory()
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="dspark-onnx-") as folder:
            path = Path(folder) / "model.onnx"
            _export(setup.source, path, setup.dtype)
            self._session = InferenceSession(str(path), options, providers=[_PROVIDERS[setup.device]])
        self._dtype = np.dtype(setup.dtype)
        self._past = [(entry.name, entry.shape) for entry in self._session.get_inputs()[2:]]
        self._present = [entry.name for entry in self._session.get_outputs()[1:]]
        self.options: Mapping[str, str] = {
            "onnxruntime": onnxruntime.__version__,
            "provider": _PROVIDERS[setup.device],
            "graph optimization": "all",
            "intra-op threads": str(setup.threads),
            "export": "torch.onnx.export(dynamo=True), past bound to present",
        }

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """See Contestant."""
        empty = {name: np.zeros((1, shape[1], 0, shape[3]), self._dtype) for name, shape in self._past}
        past = [OrtValue.ortvalue_from_numpy(array, self._device, 0) for array in empty.values()]
        ids = np.asarray([prompt], np.int64)
        start = 0
        for _ in range(new_tokens):
            binding = self._session.io_binding()
            binding.bind_cpu_input("ids", ids)
            binding.bind_cpu_input("positions", np.arange(start, start + ids.shape[1])[None])
            for name, value in zip(empty, past, strict=True):
                binding.bind_ortvalue_input(name, value)
            binding.bind_output("logits", "cpu")
            for name in self._present:
                binding.bind_output(name, self._device)
            self._session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            token = int(logits.numpy()[0, -1].argmax())
            start += ids.shape[1]
            ids = np.asarray([[token]], np.int64)
            yield [token]


def _check(setup: Setup) -> None:
    provider, dtype = _PROVIDERS.get(setup.device), _DTYPES.get(setup.device)
    if provider is None or provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"--against onnxruntime: version {onnxruntime.__version__} here has no kernels for {setup.device} "
            f"({provider or 'no provider'}); leave it out"
        )
    if setup.dtype != dtype:
        raise InputError(
            f"--against onnxruntime: its {setup.device} kernels compute in {dtype}, the artifact holds {setup.dtype}; "
            f"compare with an artifact compiled with --dtype {dtype}"
        )


def _export(model: str, path: Path, dtype: str) -> None:
    command = [sys.executable, "-m", "dspark_compiler.bench.onnx_export", model, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise DSparkError(f"--against onnxruntime: the model cannot be exported to ONNX: {lines[-1]:.300}")
