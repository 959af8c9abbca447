"""Which launches a drafter takes on GPUs: one a kind where projections lie side by side, else one by one."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import tvm
from tvm import relax

from dspark_compiler.config import CompileConfig
from dspark_compiler.graph import draft_ops, ops, quantized_ops, sampling_ops  # noqa: F401 - define torch.ops.dspark
from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.simt.layouts import RowLayouts
from tests.passes.test_attach_decode_heads import CONFIG, attached, make_heads
from tests.tiny_models import tiny

KINDS = ("block_step", "block_attention", "ring_prologue", "write_ring", "rope_tables", "beside", "columns", "rope")
VULKAN: CompileConfig = replace(CONFIG, target="vulkan", max_batch=1, dtype="float32")


def launches(program: Program, name: str) -> Counter[str]:
    """Calls of an entry point by what kernels are called first."""
    module = lower(program, plan_layouts(program, RowLayouts("float32"), "float32"))
    calls: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, relax.Call) and node.args and isinstance(node.args[0], tvm.ir.GlobalVar):
            kernel = node.args[0].name_hint
            calls[next((kind for kind in KINDS if kernel.startswith(f"{kind}_")), "other")] += 1

    relax.analysis.post_order_visit(module[name], count)
    return calls


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_a_drafter_takes_a_launch_a_kind(model: str) -> None:
    heads = make_heads(tiny(model), "vanilla", head_dim=16)
    program = attached(tiny(model), heads, VULKAN)
    layers = heads.drafter.config.num_hidden_layers
    assert layers > 1
    draft = launches(program, "draft")
    assert draft["block_step"] == layers
    assert draft["rope_tables"] == 1
    assert not draft["columns"]  # draws read the numbers where they lie
    assert not draft["block_attention"] + draft["rope"]
    for entry in ("prefill_4", "decode", "verify_4"):
        found = launches(program, entry)
        assert found["ring_prologue"] == 1
        assert not found["write_ring"] + found["rope"]


def test_heads_that_no_team_shares_take_launches_of_their_own() -> None:
    program = attached(tiny("llama"), make_heads(tiny("llama"), "vanilla", head_dim=12), VULKAN)
    draft, verify = launches(program, "draft"), launches(program, "verify_4")
    assert draft["block_attention"]
    assert not draft["block_step"] + verify["ring_prologue"]
    assert verify["write_ring"] > 1


def test_rotations_of_the_target_s_frequencies_are_made_once() -> None:
    model = tiny("llama")
    size = model.config.hidden_size // model.config.num_attention_heads
    theta = model.config.rope_parameters["rope_theta"]
    heads = make_heads(model, "vanilla", head_dim=size, rope={"rope_theta": theta})
    program = attached(model, heads, VULKAN)
    assert "heads.rotary.inv_freq" not in program.params
    assert launches(program, "verify_4")["rope_tables"] == 1
    other = attached(model, make_heads(model, "vanilla", head_dim=size, rope={"rope_theta": 7.0}), VULKAN)
    assert launches(other, "verify_4")["rope_tables"] == 2
