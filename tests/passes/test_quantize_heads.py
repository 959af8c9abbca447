"""Decode heads in fewer bits: the target's weights and what it computes stay, drafts move a little."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.graph.program import Program, Role
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.quantize_heads import QuantizeHeads
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.passes.test_attach_decode_heads import CONFIG, G, attached, make_heads
from tests.program_runner import ProgramRunner
from tests.tiny_models import tiny

INT8 = WeightFormat("int8")


def quantized(name: str = "vanilla", config: CompileConfig = CONFIG) -> tuple[Program, Program]:
    """With the heads as they are, and quantized."""
    plain = attached(tiny("llama"), make_heads(tiny("llama"), name), config)
    changed = deepcopy(plain)
    assert QuantizeHeads(INT8).apply(changed).modified
    verify(changed, "after quantize_heads")
    return plain, changed


@pytest.mark.parametrize("name", ["vanilla", "gated", "rnn", "medusa", "eagle3"])
def test_drafts_are_near_and_the_target_is_the_same_to_the_bit(name):
    runners = [ProgramRunner(program) for program in quantized(name)]
    prompt, uniform = [3, 14, 15, 92, 65, 35], torch.full((2, G), 0.5)
    logits = [runner.prefill(0, list(prompt)) for runner in runners]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    plain, changed = (runner.draft([7, 8], uniform, 3.0)["probs"][0, 0] for runner in runners)
    assert 0 < float((plain - changed).abs().sum()) < 0.2, "it must show, and little"


def test_every_linear_of_the_heads_reads_codes_and_the_target_s_none():
    plain, changed = quantized()
    kept = {ref for ref in changed.params if not ref.startswith("heads.")}
    assert kept == {ref for ref in plain.params if not ref.startswith("heads.")}
    draft = changed.entries["draft"].graph.graph
    assert not draft.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert "lm_head.weight" not in {n.meta["ref"] for n in changed.entries["draft"].placeholders(Role.PARAM)}
    assert {"heads.lm_head.weight.codes", "heads.fc.weight.codes"} <= changed.params.keys()
    assert "heads.markov_head.markov_w1.weight" in changed.params, "a table that is only looked up"


def test_a_head_that_is_quantized_with_the_target_is_the_drafter_s_too():
    config = replace(CONFIG, quantize="int8")
    program = attached(tiny("llama"), make_heads(tiny("llama"), "vanilla"), config)
    assert "lm_head.weight.codes" in {n.meta["ref"] for n in program.entries["draft"].placeholders(Role.PARAM)}
    assert not any(ref.startswith("heads.") and ref.endswith(".codes") for ref in program.params)
    QuantizeHeads(INT8).apply(program)
    assert "heads.lm_head.weight.codes" not in program.params
    assert "heads.layers.0.mlp.down_proj.weight.codes" in program.params


def test_options_that_quantize_nothing_are_refused():
    for heads in (None, NGRAM):
        with pytest.raises(InputError, match="--quantize-heads int8: needs --heads with a folder of weights"):
            CompileConfig(heads=heads, quantize_heads="int8")
    with pytest.raises(InputError, match="--quantize-heads int2: not one of int8"):
        CompileConfig(heads=Path("heads"), quantize_heads="int2")  # type: ignore[arg-type]
