"""Elementwise operators and selection, written out by us, compute what torch does, through the whole lowering."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import fx

from dspark_compiler.backends.cpu import CpuBackend
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.apply import apply_schedules
from tests.graph.build import Builder, aten, evaluate

_CASES: dict[str, Any] = {
    "exp": lambda b, x: b.call(aten.exp.default, x),
    "sigmoid": lambda b, x: b.call(aten.sigmoid.default, x),
    "silu": lambda b, x: b.call(aten.silu.default, x),
    "tanh": lambda b, x: b.call(aten.tanh.default, x),
    "gelu": lambda b, x: b.call(aten.gelu.default, x),
    "gelu tanh": lambda b, x: b.call(aten.gelu.default, x, approximate="tanh"),
    "square": lambda b, x: b.call(aten.pow.Tensor_Scalar, x, 2),
    "cube": lambda b, x: b.call(aten.pow.Tensor_Scalar, x, 3.0),
    "select": lambda b, x: b.call(aten.select.int, x, 1, 2),
    "select from the end": lambda b, x: b.call(aten.select.int, x, -1, -3),
    "power": lambda b, x: b.call(aten.pow.Tensor_Scalar, b.call(aten.abs.default, x), 0.7),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Case -> (compiled, torch's), over values from -100 to 100; one module for all cases."""
    b = Builder()
    x = b.param("x", torch.linspace(-100, 100, 4 * 8 * 25).reshape(1, 4, 200))
    program = b.done(*(make(b, x) for make in _CASES.values()))
    expected = evaluate(program)
    backend = CpuBackend()
    plan = plan_layouts(program, backend.layouts("float32"), "float32")
    module = apply_schedules(lower(program, plan), backend.target, backend.isa)
    library = tmp_path_factory.mktemp("lib") / "model.so"
    backend.build(module, Path(library))
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    (entry,) = program.entries.values()
    arguments = [node for node in entry.graph.graph.nodes if node.op == "placeholder"]
    outputs = machine[entry.name](*(tvm.runtime.tensor(_value(node, program)) for node in arguments))
    return {
        name: (output.numpy(), wanted.numpy()) for name, output, wanted in zip(_CASES, outputs, expected, strict=True)
    }


def _value(node: fx.Node, program: Any) -> np.ndarray:
    if node.meta["ref"] in program.params:
        return program.params[node.meta["ref"]].numpy()
    return torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype).numpy()


@pytest.mark.parametrize("name", _CASES)
def test_is_torch_s(name: str, results: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    compiled, wanted = results[name]
    # exp saturates where float32 would overflow, as no softmax or gate needs more.
    finite = np.abs(wanted) < 1e38
    assert finite.mean() > 0.8
    np.testing.assert_allclose(compiled[finite], wanted[finite], rtol=3e-6, atol=1e-6)
