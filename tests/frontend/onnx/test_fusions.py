"""Sums of operators that are one in torch."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dspark_compiler.frontend.onnx.evaluate import evaluate
from dspark_compiler.frontend.onnx.fusions import fuse
from tests.onnx_graphs import Writer

Form = Callable[[Writer, str], str]


def erf(w: Writer, x: str) -> str:
    return w.op("Add", w.number(1.0), w.op("Erf", w.op("Div", x, w.number(2**0.5))))


def tanh(w: Writer, x: str) -> str:
    cube = w.op("Add", x, w.op("Mul", w.number(0.044715), w.op("Pow", x, w.number(3.0))))
    return w.op("Add", w.op("Tanh", w.op("Mul", w.number((2 / np.pi) ** 0.5), cube)), w.number(1.0))


FORMS: dict[str, tuple[Form, str]] = {
    "half of x": (lambda w, x: w.op("Mul", w.op("Mul", w.number(0.5), x), erf(w, x)), "Gelu"),
    "half of the sum": (lambda w, x: w.op("Mul", x, w.op("Mul", w.number(0.5), tanh(w, x))), "Gelu"),
    "half of all": (lambda w, x: w.op("Mul", w.op("Mul", x, erf(w, x)), w.number(0.5)), "Gelu"),
    "silu": (lambda w, x: w.op("Mul", w.op("Sigmoid", x), x), "Silu"),
    "1/sqrt": (lambda w, x: w.op("Div", w.number(1.0), w.op("Sqrt", x)), "Rsqrt"),
}


@pytest.mark.parametrize("form", FORMS)
def test_becomes_one_operator(form: str) -> None:
    write, operator = FORMS[form]
    writer = Writer(18)
    writer.output(write(writer, writer.input("x", [5], 1)), "y", [5])
    model = ir.serde.deserialize_model(writer.model())
    x = {model.graph.inputs[0]: torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0])}
    before = evaluate(x, model.graph.outputs)[model.graph.outputs[0]]
    fuse(model)
    assert [node.op_type for node in model.graph] == [operator, "Identity"]
    torch.testing.assert_close(evaluate(x, model.graph.outputs)[model.graph.outputs[0]], before)


def test_other_numbers_stay() -> None:
    writer = Writer(18)
    x = writer.input("x", [5], 1)
    writer.output(writer.op("Mul", writer.op("Mul", writer.number(0.6), x), erf(writer, x)), "y", [5])
    model = ir.serde.deserialize_model(writer.model())
    fuse(model)
    assert "Erf" in [node.op_type for node in model.graph]
