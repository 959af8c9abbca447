"""Marks of decoder layers: what transformers calls hidden_states, by number."""

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.capture import capture
from dspark_compiler.frontend.layers import decoder_layers
from dspark_compiler.graph.program import EntryPoint, Program
from tests.captured import captured
from tests.tiny_models import TINY, tiny

CONFIG = CompileConfig(max_seq_len=16, prefill_widths=(6,), verify_width=4, heads=Path("heads"))
IDS = torch.tensor([[3, 14, 15, 92, 65, 35]])


class Recorder(fx.Interpreter):
    """Remembers what was marked."""

    marked: dict[int, torch.Tensor]

    def call_function(self, target, args, kwargs):
        if target is torch.ops.dspark.layer_output.default:
            self.marked[args[1]] = args[0]
        return super().call_function(target, args, kwargs)


def marked(program: Program, entry: EntryPoint, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    values = {"input_ids": ids, "positions": torch.arange(ids.shape[1])[None]} | program.params
    recorder = Recorder(entry.graph)
    recorder.marked = {}
    recorder.run(*(values[n.meta["ref"]] for n in entry.graph.graph.nodes if n.op == "placeholder"))
    return recorder.marked


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "mixtral"])
def test_marks_are_the_hidden_states_of_transformers(family):
    model = tiny(family)
    program = captured(model, CONFIG)
    found = marked(program, program.entries["prefill_6"], IDS)
    expected = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    # The last one transformers keeps behind the final norm; no drafter may read that.
    assert sorted(found) == list(range(-1, len(expected) - 1))
    for layer in range(-1, len(expected) - 2):
        torch.testing.assert_close(found[layer], expected[layer + 1], rtol=1e-4, atol=1e-5)


def test_without_heads_nothing_is_marked():
    program = captured(tiny("llama"), CompileConfig(max_seq_len=16, prefill_widths=(6,), verify_width=4))
    assert not marked(program, program.entries["prefill_6"], IDS)


def test_hooks_are_gone_afterwards():
    model = TINY["llama"]()
    capture(model, CONFIG)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_without_one_list_of_layers_is_refused():
    model = TINY["llama"]()
    model.twin = nn.ModuleList(model.model.layers)
    with pytest.raises(UnsupportedModelError, match="has 2 lists of 2 decoder layers where one is expected"):
        decoder_layers(model)
