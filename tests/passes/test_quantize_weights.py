"""Weights of linears become codes and scales in every entry point; what else reads a weight keeps it whole."""

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.graph.program import Program, Role
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.passes.quantize_weights import QuantizeWeights, fitting_format
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.passes.capture import VOCAB, capture, tiny_model
from tests.program_runner import ProgramRunner

dspark, aten = torch.ops.dspark, torch.ops.aten
INT8, INT4 = WeightFormat("int8"), WeightFormat("int4", group=128)


def rewritten(family: str = "llama", quantize: str | None = None) -> Program:
    config = CompileConfig(max_seq_len=32, verify_width=4, prefill_widths=(16,), quantize=quantize)
    return run_passes(default_pipeline(config), capture(tiny_model(family)))[0]


def test_every_linear_of_a_layer_reads_codes_and_the_head_stays():
    program = rewritten()
    before = dict(program.params)
    result = QuantizeWeights(INT8).apply(program)
    verify(program, "after quantize_weights")
    assert result.modified
    quantized = {ref.removesuffix(".codes") for ref in program.params if ref.endswith(".codes")}
    assert quantized == {ref for ref in before if "_proj" in ref} | {"lm_head.weight"}
    for ref in quantized:
        codes, scales = program.params[f"{ref}.codes"], program.params[f"{ref}.scales"]
        assert codes.dtype is torch.int8
        assert ref not in program.params
        error = (codes * scales - before[ref]).abs()
        assert bool((error <= scales * 0.5001 + before[ref].abs().amax(1, keepdim=True) * 0.36).all())
    for entry in program.entries.values():
        assert not [n for n in entry.graph.graph.nodes if n.target is aten.linear.default]
        assert {n.meta["ref"] for n in entry.placeholders(Role.PARAM)} <= program.params.keys()


def test_a_tied_head_and_its_embedding_read_the_same_codes():
    program = rewritten("gpt2")
    QuantizeWeights(INT4).apply(program)
    verify(program, "after quantize_weights")
    nodes = [n for entry in program.entries.values() for n in entry.graph.graph.nodes]
    looked_up = {n.args[0].meta["ref"] for n in nodes if n.target is dspark.quantized_embedding.default}
    (codes,) = looked_up
    assert "wte" in codes
    assert codes in {n.args[1].meta["ref"] for n in nodes if n.target is dspark.quantized_linear.default}
    ids = torch.tensor([[3, 0, 5]])
    scales = program.params[codes.replace("codes", "scales")]
    rows = dspark.quantized_embedding(program.params[codes], scales, ids)
    torch.testing.assert_close(rows, (program.params[codes] * scales)[ids])


def test_a_second_run_changes_nothing():
    program = rewritten(quantize="int8")
    assert not QuantizeWeights(INT8).apply(program).modified


@pytest.mark.parametrize(("depth", "group"), [(256, 128), (576, 64), (96, 32), (48, None), (32, 32)])
def test_groups_that_fit(depth, group):
    found = fitting_format(INT4, "model.layers.0.q.weight", depth)
    assert (found and found.group) == group
    assert fitting_format(INT4, "lm_head.weight", depth) == INT8


def test_what_fits_no_group_is_named():
    program = rewritten()
    notes = [str(declined) for declined in QuantizeWeights(INT4).apply(program).declined]
    assert any("down_proj.weight: its columns divide into no groups" in note for note in notes)
    assert "model.layers.0.mlp.down_proj.weight" in program.params


@pytest.mark.parametrize(("quantize", "close"), [("int8", 0.06), ("fp8", 0.3), ("int4-g128", 0.8)])
def test_logits_are_near_and_verify_and_decode_agree(quantize, close):
    exact, quantized = ProgramRunner(rewritten()), ProgramRunner(rewritten(quantize=quantize))
    prompt = torch.randint(VOCAB, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    expected, found = exact.prefill(0, prompt), quantized.prefill(0, prompt)
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error < close, "quantizing must show, and little"
    tokens = [[5, 6, 7, 8]]
    verified = quantized.verify(tokens)[0]
    quantized.commit([2])
    after = torch.stack([quantized.decode([token])[0] for token in (7, 8)])
    torch.testing.assert_close(after, verified[2:], rtol=1e-3, atol=1e-3)
