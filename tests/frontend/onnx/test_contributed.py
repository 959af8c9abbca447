"""Operators of ONNX Runtime's optimizer, each against ONNX Runtime itself."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.evaluate import evaluate
from tests.onnx_graphs import HIDDEN, Writer

Write = Callable[[Writer, str], str | Sequence[str]]


def _skip(*weights: str, outputs: int = 1) -> Write:
    def write(w: Writer, x: str) -> str | Sequence[str]:
        other = w.op("Neg", w.op("Tanh", x))
        given = ["" if not name else w.weight(name, HIDDEN, centre=float(name == "weight")) for name in weights]
        found = w.contrib("SkipLayerNormalization", x, other, *given, outputs=outputs, epsilon=1e-3)
        return found if outputs == 1 else (found[0], found[3])

    return write


def _fused(**options: float) -> Write:
    def write(w: Writer, x: str) -> str:
        flipped = w.op("Transpose", x, perm=[0, 2, 1]) if options.get("transA") else x
        shape = (24, HIDDEN) if options.get("transB") else (HIDDEN, 24)
        return w.contrib("FusedMatMul", flipped, w.weight("w", *shape), **options)  # type: ignore[no-any-return]

    return write


FORMS: dict[str, Write] = {
    "skip": _skip("weight"),
    "skip-shifted": _skip("weight", "beta"),
    "skip-biased": _skip("weight", "beta", "bias"),
    "skip-sum": _skip("weight", "beta", "bias", outputs=4),
    "skip-bias-alone": _skip("weight", "", "bias", outputs=4),
    "fast-gelu": lambda w, x: w.contrib("FastGelu", x),
    "fast-gelu-biased": lambda w, x: w.contrib("FastGelu", x, w.weight("bias", HIDDEN)),
    "bias-gelu": lambda w, x: w.contrib("BiasGelu", x, w.weight("bias", HIDDEN)),
    "fused": _fused(alpha=0.25),
    "fused-right": _fused(alpha=2.0, transB=1),
    "fused-left": _fused(transA=1),
    "fused-both": _fused(alpha=-1.5, transA=1, transB=1),
}


def _written(write: Write) -> tuple[ir.Model, bytes]:
    writer = Writer(18)
    found = write(writer, writer.input("x", ["batch", "tokens", HIDDEN], TensorProto.FLOAT))
    for number, value in enumerate([found] if isinstance(found, str) else found):
        writer.output(value, f"y{number}", ["batch", "tokens", "size"])
    proto = writer.model()
    return ir.serde.deserialize_model(proto), proto.SerializeToString()


@pytest.mark.parametrize("form", FORMS)
def test_is_onnx_runtimes(form: str) -> None:
    model, data = _written(FORMS[form])
    x = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(3))
    expected = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    found = evaluate({model.graph.inputs[0]: x}, list(model.graph.outputs))
    assert len(expected) == len(model.graph.outputs)
    for value, wanted in zip(model.graph.outputs, expected, strict=True):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(found[value].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_product_with_the_batch_inside_is_refused() -> None:
    model, _ = _written(_fused(transBatchA=1))
    with pytest.raises(UnsupportedModelError, match=r"\(com\.microsoft\.FusedMatMul\).*transBatchA"):
        evaluate({model.graph.inputs[0]: torch.zeros(2, 5, HIDDEN)}, list(model.graph.outputs))
