"""ONNX Runtime on an export of the source model, with past keys and values bound from one step's output to the next."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import ExecutionMode, GraphOptimizationLevel, InferenceSession, OrtValue, SessionOptions

from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.contestants.onnx_form import FORM, Form
from dspark_compiler.bench.memory import host_memory
from dspark_compiler.errors import DSparkError, InputError
from dspark_compiler.runtime.ort_provider import Provider, check_started, load_provider

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
        self._device, self._number = setup.device, setup.number if setup.device == "cuda" else 0
        self.memory = host_memory()
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        provider = Provider(_PROVIDERS[setup.device], setup.device, self._number)
        load_provider(provider)
        with tempfile.TemporaryDirectory(prefix="dspark-onnx-") as folder:
            self._form = _export(setup.source, Path(folder), setup.dtype)
            self._session = InferenceSession(self._form.path, options, providers=provider.order)
        check_started(self._session, provider)
        self._types = {name: np.dtype(kind) for name, kind in self._form.dtypes.items()}
        self.options: Mapping[str, str] = {
            "onnxruntime": onnxruntime.__version__,
            "provider": provider.name,
            "graph optimization": "all",
            "execution": "sequential",
            "prepacking": "on",
            "intra-op threads": str(setup.threads),
            "export": f"{self._form.origin}, past bound to present",
        }

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """See Contestant."""
        form = self._form
        past = [
            OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, size), self._types[name]), self._device, self._number)
            for name, (heads, size) in form.past.items()
        ]
        ids = np.asarray([prompt])
        start = 0
        for _ in range(new_tokens):
            end = start + ids.shape[1]
            binding = self._session.io_binding()
            for name, numbers in (
                (form.ids, ids),
                (form.positions, np.arange(start, end)[None]),
                (form.mask, np.ones((1, end))),
                (form.branch, np.ones(1)),
            ):
                if name is not None:
                    binding.bind_cpu_input(name, numbers.astype(self._types[name]))
            for name, value in zip(form.past, past, strict=True):
                binding.bind_ortvalue_input(name, value)
            binding.bind_output(form.logits, "cpu")
            for name in form.present:
                binding.bind_output(name, self._device, self._number)
            self._session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            token = int(logits.numpy()[0, -1].argmax())
            start = end
            ids = np.asarray([[token]])
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


def _export(model: str, folder: Path, dtype: str) -> Form:
    command = [sys.executable, "-m", "dspark_compiler.bench.onnx_export", model, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise DSparkError(f"--against onnxruntime: the model cannot be exported to ONNX: {lines[-1]:.300}")
    return Form(**json.loads((folder / FORM).read_text(encoding="utf-8")))
