"""Which launches drafted tokens take on Vulkan devices: three each, the first of which is a small head."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import tvm
from tvm import relax

from dspark_compiler.graph import draft_ops, ops, quantized_ops, sampling_ops  # noqa: F401 - define torch.ops.dspark
from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.simt.layouts import RowLayouts
from tests.lowering.test_drafting import VULKAN
from tests.passes.test_attach_decode_heads import attached, make_heads
from tests.tiny_models import tiny

_KINDS = ("sequential_head", "row_stats", "weigh_tokens", "draw_token", "token_probs")


def _kernels(program: Program, entry: str) -> Counter[str]:
    """An entry point's calls of kernels, by kind."""
    module = lower(program, plan_layouts(program, RowLayouts("float32"), "float32"))
    calls: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, relax.Call) and node.args and isinstance(node.args[0], tvm.ir.GlobalVar):
            calls.update(kind for kind in _KINDS if node.args[0].name_hint.startswith(f"{kind}_"))

    relax.analysis.post_order_visit(module[entry], count)
    return calls


@pytest.mark.parametrize(
    ("head", "first"), [("vanilla", "sequential_head"), ("gated", "row_stats"), ("rnn", "row_stats")]
)
def test_a_drafted_token_takes_three_launches(head: str, first: str) -> None:
    heads = make_heads(tiny("llama"), head, head_dim=16)
    found = _kernels(attached(tiny("llama"), heads, VULKAN), "draft")
    block = heads.drafter.config.block_size
    assert found[first] == found["weigh_tokens"] == found["draw_token"] == block
    assert sum(found.values()) == 3 * block


def test_tokens_of_many_sequences_are_drawn_so_too() -> None:
    heads = make_heads(tiny("llama"), "vanilla", head_dim=16)
    found = _kernels(attached(tiny("llama"), heads, replace(VULKAN, max_batch=12)), "draft")
    assert found["sequential_head"] == heads.drafter.config.block_size


def test_what_is_judged_is_not_drawn() -> None:
    heads = make_heads(tiny("llama"), "vanilla", head_dim=16)
    found = _kernels(attached(tiny("llama"), heads, VULKAN), "accept_4")
    assert found["token_probs"] == 1
    assert not found["draw_token"]
