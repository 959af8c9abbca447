"""Folders with quantized weights: read as the numbers they stand for, kept as the codes they have, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.source import open_source
from dspark_compiler.quantization.weight import QuantizedWeight, quantize
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.tiny_models import TINY

GROUP = 16
# (name of a linear, its weight): the tensors a checkpoint keeps it as, and the numbers those stand for
Tensors: TypeAlias = Callable[[str, QuantizedWeight], tuple[dict[str, torch.Tensor], torch.Tensor]]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Unsigned codes [R, C] in int32 words along the last axis, written out a code at a time."""
    count = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // count, dtype=torch.int64)
    for i in range(count):
        words |= codes[:, (order[i] if order else i) :: count].long() << (bits * i)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def settings(bits, kind="int", layout="pack-quantized", strategy="group", **more):
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": GROUP, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group | more}}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}


def write(
    folder: Path, config: dict[str, Any], form: WeightFormat, tensors: Tensors, model: Callable[[], Any] | None = None
) -> dict[str, torch.Tensor]:
    """A tiny Llama whose linears are kept as ``tensors`` (name, quantized weight) says; the numbers they stand for."""
    (model or TINY["llama"])().save_pretrained(folder)
    state, exact = load_file(folder / "model.safetensors"), {}
    for name in [name for name in state if "_proj" in name]:
        weight = quantize(state.pop(name).float(), form)
        made, exact[name] = tensors(name.removesuffix(".weight"), weight)
        state.update(made)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return exact


def compressed(bits):
    def tensors(module, weight):
        made = {
            f"{module}.weight_packed": packed(weight.codes.long() + (1 << bits - 1), bits),
            f"{module}.weight_scale": weight.scales,
            f"{module}.weight_shape": torch.tensor(weight.codes.shape),
        }
        return made, weight.dequantized()

    return tensors


def as_they_are(module, weight):
    return {f"{module}.weight": weight.codes, f"{module}.weight_scale": weight.scales}, weight.dequantized()


def awq(module: str, weight: QuantizedWeight) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    zeros = torch.arange(weight.scales.numel()).view(weight.scales.shape) % 16
    codes, scales = weight.codes.long() + 8, weight.scales.half()
    exact = (codes.view(*scales.shape, -1) - zeros[..., None]) * scales.float()[..., None]
    made = {
        f"{module}.qweight": packed(codes.T, 4, _AWQ_ORDER),
        f"{module}.qzeros": packed(zeros.T, 4, _AWQ_ORDER),
        f"{module}.scales": scales.T,
    }
    return made, exact.view(codes.shape)


CASES = {
    "w4a16": (settings(4), WeightFormat("int4", GROUP), compressed(4)),
    "w8a16": (settings(8, strategy="channel"), WeightFormat("int8"), compressed(8)),
    "int8": (settings(8, layout="int-quantized", strategy="channel"), WeightFormat("int8"), as_they_are),
    "fp8": (settings(8, "float", "float-quantized", "channel"), WeightFormat("float8_e4m3"), as_they_are),
    "awq": (AWQ, WeightFormat("int4", GROUP), awq),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_and_codes(tmp_path, case):
    config, form, tensors = CASES[case]
    exact = write(tmp_path, config, form, tensors)
    source = open_source(str(tmp_path))
    model = source.load(torch.float32)
    stored = source.stored_weights(model)
    assert stored.keys() == exact.keys()
    for name, numbers in exact.items():
        torch.testing.assert_close(model.get_parameter(name), numbers, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stored[name].dequantized(), numbers, rtol=1e-5, atol=1e-6)
        assert stored[name].format.codes == form.codes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings(8, input_activations={"num_bits": 8}), "activations are quantized, too"),
        (settings(3), "3-bit int weights by group cannot be read"),
        (settings(4, layout="marlin-24"), "compressed-tensors of format marlin-24"),
        (AWQ | {"bits": 8}, "AWQ of 8 bits"),
        ({"quant_method": "gptq"}, "weights quantized with gptq"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(tmp_path, config, message):
    write(tmp_path, config, WeightFormat("int4", GROUP), compressed(4))
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        open_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_groups_that_do_not_divide_the_columns(tmp_path):
    config = settings(4)
    config["config_groups"]["group_0"]["weights"]["group_size"] = 20
    write(tmp_path, config, WeightFormat("int4", GROUP), compressed(4))
    with pytest.raises(InputError, match="columns do not divide into groups of 20"):
        open_source(str(tmp_path)).load(torch.float32)
