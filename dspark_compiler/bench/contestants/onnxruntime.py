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


class OnnxRuntime:
    """See Contestant.

    Raises:
        InputError: weights of a type its CPU kernels do not have.
        DSparkError: the model cannot be exported.
    """

    def __init__(self, setup: Setup) -> None:
        if setup.device != "cpu":
            raise InputError("--against onnxruntime: compares artifacts for the cpu only")
        self.memory = host_memory()
        if setup.dtype != "float32":
            raise InputError(
                f"--against onnxruntime: its CPU kernels compute in float32, the artifact holds {setup.dtype}; "
                "compare with an artifact compiled with --dtype float32"
            )
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="dspark-onnx-") as folder:
            path = Path(folder) / "model.onnx"
            _export(setup.source, path)
            self._session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._past = [(entry.name, entry.shape) for entry in self._session.get_inputs()[2:]]
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self.options: Mapping[str, str] = {
            "onnxruntime": onnxruntime.__version__,
            "graph optimization": "all",
            "intra-op threads": str(setup.threads),
            "export": "torch.onnx.export(dynamo=True), past bound to present",
        }

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """See Contestant."""
        empty = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in self._past}
        past = [OrtValue.ortvalue_from_numpy(array) for array in empty.values()]
        ids = np.asarray([prompt], np.int64)
        start = 0
        for _ in range(new_tokens):
            binding = self._session.io_binding()
            binding.bind_cpu_input("ids", ids)
            binding.bind_cpu_input("positions", np.arange(start, start + ids.shape[1])[None])
            for name, value in zip(empty, past, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            token = int(logits.numpy()[0, -1].argmax())
            start += ids.shape[1]
            ids = np.asarray([[token]], np.int64)
            yield [token]


def _export(model: str, path: Path) -> None:
    command = [sys.executable, "-m", "dspark_compiler.bench.onnx_export", model, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise DSparkError(f"--against onnxruntime: the model cannot be exported to ONNX: {lines[-1]:.300}")
