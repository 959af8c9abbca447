"""Models of 16 bits, and with weights of few: what they compute is what they stand for, within their rounding."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import fx

from dspark_compiler.config import DType
from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role
from dspark_compiler.graph.values import infer
from dspark_compiler.quantization.weight import QuantizedWeight
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.lowering.onnx.test_families import check_calls, rewritten
from tests.onnx_runner import OnnxRunner
from tests.tiny_models import _model, tiny


def within(tolerance: float) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
        assert float((found - wanted).abs().max() / wanted.abs().max()) < tolerance

    return close


def nodes_of(folder: Path, entry: str = "decode") -> list[onnx.NodeProto]:
    return list(onnx.load(folder / f"{entry}.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "qwen3_moe"])
def test_float16(name: str, tmp_path: Path) -> None:
    runner = check_calls(rewritten(tiny(name)), tmp_path, "float16", within(1e-2))
    params = runner.program.params
    assert {tensor.dtype for name, tensor in params.items() if name.endswith("weight")} == {torch.float16}
    assert runner.states["k_cache.0"].dtype is torch.float16
    # Angles of positions would be wrong by much in 16 bits.
    frequencies = [tensor for name, tensor in params.items() if "inv_freq" in name]
    assert frequencies
    assert all(tensor.dtype is torch.float32 for tensor in frequencies)
    decode = next(entry for entry in runner.program.entries.values() if entry.kind is EntryKind.DECODE)
    output = next(node for node in decode.graph.graph.nodes if node.op == "output")
    assert output.args[0][0].meta["val"].dtype is torch.float32


def test_float16_with_a_cache_that_forgets(tmp_path: Path) -> None:
    program = rewritten(tiny("llama"), kv_budget=24, kv_policy="snapkv")
    runner = check_calls(program, tmp_path, "float16", within(1e-2))
    assert runner.states["k_cache.0"].dtype is torch.float16


def test_float16_of_several_layers_outputs(tmp_path: Path) -> None:
    """A sum over them may be beyond float16: their product and its norm are float32, what follows is not."""
    graph = fx.Graph()
    first, second, fc, scale, weight = (
        graph.placeholder(name) for name in ("first", "second", "fc", "scale", "weight")
    )
    side = graph.call_function(torch.ops.aten.cat.default, ([first, second], -1))
    joined = graph.call_function(torch.ops.aten.linear.default, (side, fc))
    normed = graph.call_function(torch.ops.dspark.rms_norm.default, (joined, scale, 1e-5))
    graph.output((graph.call_function(torch.ops.aten.linear.default, (normed, weight)),))
    entry = EntryPoint("decode", EntryKind.DECODE, 1, 1, fx.GraphModule({}, graph), ("y",))
    params = {"fc": torch.full((8, 16), 3e4), "scale": torch.ones(8), "weight": torch.ones(4, 8)}
    for node in graph.nodes:
        if node.op == "placeholder":
            node.meta.update(role=Role.PARAM if node.name in params else Role.INPUT, ref=node.name)
            node.meta["val"] = params.get(node.name, torch.empty(3, 8)).to("meta")
        elif node.op == "call_function":
            node.meta["val"] = infer(node)
    runner = OnnxRunner(Program({"decode": entry}, params), tmp_path, "float16")
    kinds = {name: tensor.dtype for name, tensor in runner.program.params.items()}
    assert kinds == {"fc": torch.float32, "scale": torch.float32, "weight": torch.float16}
    ones = torch.ones(3, 8)
    within(1e-3)(runner.run("decode", first=ones, second=ones)["y"], torch.full((3, 4), 8.0))


@pytest.mark.parametrize(
    ("scheme", "bits", "dtype", "tolerance"),
    [("int8", {8}, "float32", 1e-4), ("int4-g128", {4, 8}, "float32", 1e-4), ("int4-g128", {4, 8}, "float16", 1e-2)],
)
def test_codes(
    scheme: str, bits: set[int], dtype: DType, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspark_compiler.lowering.onnx.codes._ROUNDED_ACTIVATIONS", 1)  # nothing but the codes rounds
    program = rewritten(_model("LlamaConfig", hidden_size=64, intermediate_size=128), quantize=scheme)
    check_calls(program, tmp_path, dtype, within(tolerance))
    products = [node for node in nodes_of(tmp_path) if node.op_type == "MatMulNBits"]
    assert {attribute.i for node in products for attribute in node.attribute if attribute.name == "bits"} == bits
    assert not any(node.op_type == "Gemm" for node in nodes_of(tmp_path))


def _one_linear(weight: QuantizedWeight) -> Program:
    """y = x @ W.T of [3,K]."""
    graph = fx.Graph()
    x, codes, scales, offsets = (graph.placeholder(name) for name in ("x", "codes", "scales", "offsets"))
    bits = weight.format.bits
    graph.output(
        (graph.call_function(torch.ops.dspark.quantized_linear.default, (x, codes, scales, None, offsets, bits)),)
    )
    entry = EntryPoint("decode", EntryKind.DECODE, 1, 1, fx.GraphModule({}, graph), ("y",))
    params = {"codes": weight.codes, "scales": weight.scales, "offsets": weight.offsets}
    for node in graph.nodes:
        if node.op == "placeholder":
            role = Role.INPUT if node.name == "x" else Role.PARAM
            value = torch.empty(3, weight.codes.shape[1]) if node.name == "x" else params[node.name]
            node.meta.update(role=role, ref=node.name, val=value.to("meta"))
        elif node.op == "call_function":
            node.meta["val"] = infer(node)
    return Program({"decode": entry}, params)


@pytest.mark.parametrize("group", [32, 192])
def test_codes_with_offsets(group: int, tmp_path: Path) -> None:
    form, depth = WeightFormat("int4", group, True), 2 * 192
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-8, 8, (24, depth), generator=generator, dtype=torch.int8)
    scales, offsets = (torch.rand(24, form.groups(depth), generator=generator) + 0.1 for _ in range(2))
    weight = QuantizedWeight(form, codes, scales, offsets)
    runner = OnnxRunner(_one_linear(weight), tmp_path)
    x = torch.randn(3, depth, generator=generator)
    wanted = x @ weight.dequantized().T
    within(1e-5)(runner.run("decode", x=x)["y"], wanted)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (WeightFormat("int4", 24, True), r"codes: int8 codes whose scales hold for 24 columns .* 16 columns or more"),
        (WeightFormat("int8", 24, True), r"codes: codes of 8 bits with offsets have no ONNX form here"),
    ],
)
def test_codes_without_a_form_are_refused(form: WeightFormat, message: str, tmp_path: Path) -> None:
    factors = torch.ones(8, 2), torch.ones(8, 2)
    weight = QuantizedWeight(form, torch.zeros(8, 48, dtype=torch.int8), *factors)
    with pytest.raises(LoweringError, match=message):
        OnnxRunner(_one_linear(weight), tmp_path)
