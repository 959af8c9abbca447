"""Columns that matter gain, what feeds them gives: the program computes what it did, and quantizes better."""

import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.passes.scale_channels import ScaleChannels
from dspark_compiler.quantization.channel_scales import channel_scales
from dspark_compiler.quantization.weight import quantize
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.passes.capture import VOCAB, capture, tiny_model
from tests.program_runner import ProgramRunner

FORM = WeightFormat("int4", group=32)
TEXT = torch.randint(VOCAB, (32,), generator=torch.Generator().manual_seed(2)).tolist()


def rewritten(family: str = "llama") -> Program:
    config = CompileConfig(max_seq_len=32, verify_width=4, prefill_widths=(16,))
    return run_passes(default_pipeline(config), capture(tiny_model(family)))[0]


def test_the_program_computes_what_it_did():
    for family in ("llama", "qwen3"):
        before, program = ProgramRunner(rewritten(family)), rewritten(family)
        for ref in [ref for ref in program.params if "norm.weight" in ref]:  # a channel that stands out
            program.params[ref] = program.params[ref].clone()
            program.params[ref][0] *= 20
            before.program.params[ref] = program.params[ref].clone()
        weights = {ref: tensor.clone() for ref, tensor in program.params.items()}
        result = ScaleChannels(FORM, TEXT).apply(program)
        verify(program, "after scale_channels")
        assert result.modified
        changed = {ref for ref, tensor in program.params.items() if not torch.equal(tensor, weights[ref])}
        assert any("layernorm" in ref for ref in changed)
        assert not any("o_proj" in ref for ref in changed)
        expected, found = before.prefill(0, TEXT[:20]), ProgramRunner(program).prefill(0, TEXT[:20])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_scales_lower_the_error_where_a_column_stands_out():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    inputs = torch.randn(50, 64, generator=generator)
    inputs[:, 5] *= 40
    scales = channel_scales(weight, inputs, FORM)
    assert scales is not None
    assert scales[5] > scales.mean()

    def error(rounded: torch.Tensor) -> float:
        return float((inputs @ (rounded - weight).T).square().mean())

    plain = error(quantize(weight, FORM, clip=False).dequantized())
    assert error(quantize(weight * scales, FORM, clip=False).dequantized() / scales) < plain
