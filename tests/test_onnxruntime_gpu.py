"""Artifacts of ONNX models on a GPU: the host's provider stands in for one, and copies inputs as that does."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnxruntime import OrtValue

from dspark_compiler import CompileConfig
from dspark_compiler.artifact import Artifact
from dspark_compiler.driver import compile_model
from dspark_compiler.runtime import executor as executors
from dspark_compiler.runtime import ort_device
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.ort_device import GpuTensor, OrtDevice
from dspark_compiler.runtime.ort_provider import Provider
from dspark_compiler.runtime.ort_session import session_openers
from tests.bench import tiny

_THERE = Provider(device="cuda")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    sizes = {"max_seq_len": 96, "prefill_widths": (8,), "verify_width": 4, "kv_budget": 32}
    output = tmp_path_factory.mktemp("gpu") / "a.dspark"
    config = CompileConfig(target="onnxruntime", dtype="float16", output=output, check=False, **sizes)
    return compile_model(str(tiny.source()), config)


class _Binding:
    """Copies what lies on the host when it is bound, as ONNX Runtime does for a provider that computes elsewhere."""

    def __init__(self, session: Any, states: tuple[str, ...]) -> None:
        self._states = states
        self.own = session.io_binding()
        self.bind_ortvalue_output = self.own.bind_ortvalue_output

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        there = value if name in self._states else OrtValue.ortvalue_from_numpy(value.numpy().copy())
        self.own.bind_ortvalue_input(name, there)


class _OnHost(GpuTensor):
    """Memory of a GPU that is the host's."""

    def __init__(self, array: np.ndarray, _: Provider) -> None:
        super().__init__(array, Provider())


def _openers(artifact: Artifact, threads: int | None) -> dict[str, Any]:
    def opener(name: str, found: Any) -> Any:
        def open_there(_: Provider, weights: Any) -> Any:
            session = found(Provider(), weights)
            if session is None:
                return None
            states = artifact.manifest.entry_points[name].states
            return SimpleNamespace(
                get_outputs=session.get_outputs,
                get_modelmeta=session.get_modelmeta,
                io_binding=lambda: _Binding(session, states),
                run_with_iobinding=lambda binding: session.run_with_iobinding(binding.own),
            )

        return open_there

    return {name: opener(name, found) for name, found in session_openers(artifact, threads or 1).items()}


def _logits(executor: Executor) -> list[np.ndarray]:
    """Of a prompt of two chunks, tokens decoded beyond the budget, and a verify."""
    made = [executor.prefill(0, list(range(5, 17)), 0, 0)]
    for length in range(12, 44):
        made.append(executor.decode([length + 3], [length], [length], [1])[0])
    made.append(executor.verify([[7, 8, 9, 10]], np.arange(44, 48)[None], [44])[0])
    return [np.array(logits).reshape(-1) for logits in made]


def test_each_call_sees_its_own_numbers(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _logits(Executor(artifact, threads=1))
    monkeypatch.setattr(executors, "load_functions", _openers)
    monkeypatch.setattr(ort_device, "GpuTensor", _OnHost)
    found = _logits(Executor(artifact, threads=1, device=OrtDevice(_THERE)))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
