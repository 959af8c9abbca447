"""What is handed over in float16 on Vulkan devices: what linears of few rows that round it are alone to read."""

from typing import Any

import pytest
import tvm
from tvm import relax

from dspark_compiler.graph import draft_ops, ops, quantized_ops, sampling_ops  # noqa: F401 - define torch.ops.dspark
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.simt.layouts import RowLayouts
from tests.lowering.test_drafting import VULKAN
from tests.passes.test_attach_decode_heads import attached, make_heads
from tests.tiny_models import tiny


def _kernels(dtype: str) -> dict[str, list[str]]:
    """Of each entry point, the kernels it calls."""
    program = attached(tiny("llama"), make_heads(tiny("llama"), "vanilla", head_dim=16), VULKAN)
    module = lower(program, plan_layouts(program, RowLayouts(dtype), dtype))
    found: dict[str, list[str]] = {}
    for variable, function in module.functions.items():
        if not isinstance(function, relax.Function):
            continue
        calls = found.setdefault(variable.name_hint, [])

        def note(node: Any, calls: list[str] = calls) -> None:
            if isinstance(node, relax.Call) and node.args and isinstance(node.args[0], tvm.ir.GlobalVar):
                calls.append(node.args[0].name_hint)

        relax.analysis.post_order_visit(function, note)
    return found


def _counts(kernels: list[str]) -> tuple[int, int, int]:
    """Attention in eighths, linears that write them, linears that read them."""
    attention = sum(
        name.startswith(("step_", "block_step_")) and name.endswith(("_eighths", "_True")) for name in kernels
    )
    return attention, sum("writes_eighths" in n for n in kernels), sum("reads_eighths" in n for n in kernels)


def test_attention_and_gated_linears_hand_eighths_over() -> None:
    found, layers = _kernels("float16"), 2
    for entry in ("decode", "verify_4"):
        assert _counts(found[entry]) == (layers, layers, 2 * layers), entry
    assert _counts(found["draft"]) == (layers, 0, layers), "24 columns are no whole matrices"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_no_matrices_round_is_handed_over_whole(dtype: str) -> None:
    written = [_counts(kernels)[1] for kernels in _kernels(dtype).values()]
    assert not any(written)
