"""Weights of a quantized checkpoint stay as they are; what is not there or was changed stays plain, by name."""

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.keep_quantized import KeepQuantized, stack
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.passes.quantize_weights import linears_of_layers
from dspark_compiler.quantization.targets import kernels_read
from dspark_compiler.quantization.weight import QuantizedWeight, quantize
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.passes.capture import capture, tiny_model

GROUPS = WeightFormat("int8", group=16)


def checkpoint() -> tuple[Program, dict[str, QuantizedWeight]]:
    """A program whose linears' weights are what codes stand for, and those codes by name."""
    program = capture(tiny_model("llama"), verify=4)
    stored = {}
    for ref, weight in program.params.items():
        if "_proj" in ref:
            stored[ref] = quantize(weight, GROUPS)
            program.params[ref] = stored[ref].dequantized()
    config = CompileConfig(max_seq_len=32, verify_width=4, prefill_widths=(16,))
    return run_passes(default_pipeline(config), program)[0], stored


def test_codes_are_those_of_the_checkpoint_stacked_where_the_weights_were():
    program, stored = checkpoint()
    result = KeepQuantized(stored).apply(program)
    verify(program, "after keep_quantized")
    assert result.modified
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    stacked = program.params["model.layers.0.self_attn.q_proj_k_proj_v_proj.weight.codes"]
    torch.testing.assert_close(stacked, torch.cat([stored[name].codes for name in names]), rtol=0, atol=0)
    assert str(result.declined[0]).endswith("lm_head.weight: lm_head.weight is not quantized in the checkpoint")


def test_what_was_changed_since_stays_plain():
    program, stored = checkpoint()
    ref = "model.layers.0.mlp.down_proj.weight"
    program.params[ref] = program.params[ref] * 1.5
    assert any(
        note.endswith(f"{ref}: was changed since it was read")
        for note in map(str, KeepQuantized(stored).apply(program).declined)
    )
    assert ref in program.params


@pytest.mark.parametrize(("target", "group", "kept"), [("cpu", 16, True), ("cuda", 16, False), ("cuda", 32, True)])
def test_groups_the_target_reads(target, group, kept):
    weight = quantize(torch.randn(8, 96), WeightFormat("int8", group))
    assert kernels_read(weight.format, target, 96) is kept
    assert kernels_read(WeightFormat("int4", 96, offsets=True), "cuda", 96)
    assert kernels_read(WeightFormat("int8"), "cuda", 72)
    assert not kernels_read(WeightFormat("int8", offsets=True), "cuda", 72)


def test_rows_that_are_looked_up_have_a_scale_each():
    program, stored = checkpoint()
    head = "lm_head.weight"
    places = linears_of_layers(program)
    embedding = next(
        node for node in program.entries["decode"].graph.graph.nodes if node.target is torch.ops.aten.embedding.default
    )
    tied = embedding.args[0].meta["ref"]
    for _, linear in places[head]:
        linear.args = (linear.args[0], next(n for n in linear.graph.nodes if n.meta.get("ref") == tied))
    stored[tied] = quantize(program.params[tied], GROUPS)
    program.params[tied] = stored[tied].dequantized()
    notes = [str(declined) for declined in KeepQuantized(stored).apply(program).declined]
    assert any(f"{tied}: its rows are looked up" in note for note in notes)
    assert tied in program.params


def test_nothing_kept_is_an_error():
    program, _ = checkpoint()
    with pytest.raises(PassError, match=r"^keep_quantized: no weight is as the checkpoint has it"):
        KeepQuantized({}).apply(program)


def test_stacks_of_unlike_weights():
    weight = torch.randn(8, 64)
    four, eight = quantize(weight, WeightFormat("int4", 32)), quantize(weight, WeightFormat("int8", 32))
    both = stack([four, eight])
    assert both is not None
    assert both.format == WeightFormat("int8", 32)
    torch.testing.assert_close(both.dequantized()[:8], four.dequantized())
    assert stack([four, quantize(weight, WeightFormat("int8"))]) is None
    shifted = QuantizedWeight(WeightFormat("int4", 32, offsets=True), four.codes, four.scales, four.scales)
    mixed = stack([four, shifted])
    assert mixed is not None
    torch.testing.assert_close(mixed.dequantized()[8:], shifted.dequantized())
