import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, FalconConfig, LlamaConfig, LlamaForCausalLM, MambaConfig

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.capture import capture
from dspark_compiler.frontend.seam import window_of
from tests.running import inputs, logits_of, relative_error
from tests.tiny_models import TINY, WINDOW
from tests.traces import one_process

CONFIG = CompileConfig(prefill_widths=(8,), verify_width=1, max_seq_len=32)
SHARED = CompileConfig(prefill_widths=(8,), verify_width=4, max_batch=2, max_seq_len=64)  # numerics/test_families.py's
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


@pytest.fixture
def own_traces(monkeypatch, traces):
    """Nothing is shared: tracing itself is watched."""
    monkeypatch.undo()


def attention_nodes(program, entry="decode"):
    return program.entries[entry].graph.graph.find_nodes(op="call_function", target=torch.ops.dspark.attention.default)


def arguments(node):  # layer, scale, window, softcap
    return node.args[3:7]


@pytest.mark.parametrize(
    ("name", "windows", "softcaps"),
    [
        pytest.param("llama", [0, 0], [0.0, 0.0], marks=one_process("llama")),
        pytest.param("mistral", [WINDOW, WINDOW], [0.0, 0.0], marks=one_process("mistral")),
        pytest.param("gemma2", [WINDOW, 0], [50.0] * 2, marks=one_process("gemma2")),
        pytest.param("gpt_oss", [WINDOW, 0], [0.0, 0.0], marks=one_process("gpt_oss")),
    ],
)
def test_each_layer_says_what_it_sees(name, windows, softcaps):
    nodes = attention_nodes(capture(TINY[name](), SHARED))
    assert [arguments(n)[0] for n in nodes] == list(range(len(windows)))
    assert [arguments(n)[2] for n in nodes] == windows
    assert [arguments(n)[3] for n in nodes] == softcaps
    assert [n.args[7] is not None for n in nodes] == [name == "gpt_oss"] * len(nodes)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param("granite", 0.2, marks=one_process("granite")),
        pytest.param("llama", 8**-0.5, marks=one_process("llama")),
    ],
)
def test_the_scale_is_the_models_own(name, scale):
    assert arguments(attention_nodes(capture(TINY[name](), SHARED))[0])[1] == pytest.approx(scale)


@one_process("llama-tied")
def test_tied_weights_share_one_name_and_one_tensor():
    model = TINY["llama-tied"]()
    program = capture(model, CONFIG)
    assert "lm_head.weight" not in program.params
    shared = program.params["model.embed_tokens.weight"]
    assert shared.data_ptr() == model.lm_head.weight.data_ptr()


def test_the_model_is_left_as_it_was(own_traces):
    model = TINY["phi3-longrope"]()
    ids = torch.arange(8)[None]
    before = (model(ids).logits, model.config._attn_implementation, model.config._experts_implementation)
    frequencies = model.model.rotary_emb.inv_freq
    capture(model, CompileConfig(max_seq_len=96))
    assert torch.equal(model(ids).logits, before[0])
    assert (model.config._attn_implementation, model.config._experts_implementation) == before[1:]
    assert model.model.rotary_emb.inv_freq is frequencies
    assert model.model.rotary_emb.rope_type == "longrope"


@pytest.mark.parametrize(("max_seq_len", "first"), [(32, 0), (96, 40)])
def test_longrope_takes_its_factors_from_the_longest_text(max_seq_len, first):
    model = TINY["phi3-longrope"]()
    program = capture(model, CompileConfig(prefill_widths=(8,), max_seq_len=max_seq_len))
    ids, positions = inputs(program.entries["prefill_8"], first)
    got = logits_of(program.entries["prefill_8"], program, ids, positions)
    # Eager takes the long factors exactly when a position lies beyond the original length of 32.
    want = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert relative_error(got, want) <= 1e-5


def dynamic_rope():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope, attn_implementation="eager")).eval()


def test_dynamic_rope_compiles_where_it_does_not_set_in():
    model = dynamic_rope()
    program = capture(model, CompileConfig(prefill_widths=(8,), max_seq_len=64))
    ids, positions = inputs(program.entries["prefill_8"])
    ids = ids % 64
    got = logits_of(program.entries["prefill_8"], program, ids, positions)
    assert relative_error(got, model(ids).logits) <= 1e-5


def test_dynamic_rope_is_refused_where_it_would_set_in():
    with pytest.raises(UnsupportedModelError, match=r"model\.rotary_emb: dynamic rope .* --max-seq-len 64 or less"):
        capture(dynamic_rope(), CompileConfig(max_seq_len=65))


class WidthMatters(LlamaForCausalLM):
    """Doubles its logits where the text is long: a choice that cannot be left open."""

    def forward(self, input_ids, **kwargs):
        out = super().forward(input_ids=input_ids, **kwargs)
        if input_ids.shape[1] > 5:
            out.logits = out.logits * 2
        return out


def test_a_choice_made_on_the_width_is_made_again_for_each_width():
    torch.manual_seed(0)
    model = WidthMatters(LlamaConfig(**SMALL, attn_implementation="eager")).eval()
    program = capture(model, CONFIG)
    for entry in program.entries.values():
        ids, positions = inputs(entry)
        ids = ids % 64
        got = logits_of(entry, program, ids, positions)
        assert relative_error(got, model(input_ids=ids, position_ids=positions).logits) <= 1e-5, entry.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_captured_with_the_casts_of_eager(dtype):
    model = TINY["qwen3"]().to(dtype)
    program = capture(model, CONFIG)
    entry = program.entries["prefill_8"]
    ids, positions = inputs(entry)
    got = logits_of(entry, program, ids, positions)
    assert got.dtype == dtype
    assert relative_error(got.float(), model(input_ids=ids, position_ids=positions).logits.float()) <= 3e-2


def refused(model, match):
    with pytest.raises(UnsupportedModelError, match=match) as caught:
        capture(model.eval(), CONFIG)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_bidirectional_model_is_refused():
    refused(LlamaForCausalLM(LlamaConfig(**SMALL, is_causal=False)), "llama: its attention mask is neither causal")


def test_an_encoder_with_a_language_head_is_refused():
    refused(AutoModelForCausalLM.from_config(BertConfig(**SMALL, is_decoder=False)), "mask|attention")


def test_a_model_that_computes_attention_itself_is_refused():
    config = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    refused(AutoModelForCausalLM.from_config(config), "Falcon")


def test_a_model_that_remembers_otherwise_is_refused():
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    refused(AutoModelForCausalLM.from_config(config), "Mamba")


def test_a_layer_without_attention_is_named():
    model = TINY["llama"]()
    model.config.layer_types = ["full_attention", "linear_attention"]
    refused(model, "layer 1 is of type linear_attention; only full_attention, sliding_attention layers")


def test_a_layer_that_attends_twice_is_refused():
    model = TINY["llama"]()
    model.model.layers[1].self_attn.layer_idx = 0
    refused(model, r"layers \[1\] call no attention")


class Branching(nn.Module):
    def forward(self, hidden):
        return hidden if float(hidden.sum()) > 0 else -hidden


def test_the_module_that_stops_the_capture_is_named():
    model = TINY["llama"]()
    model.model.layers[1].mlp = Branching()
    error = refused(model, r"model\.layers\.1\.mlp \(Branching\): cannot be captured")
    assert error.__cause__ is not None


def test_capture_is_silent(capfd, own_traces):
    model = TINY["llama"]()
    capture(model, CONFIG)
    model.model.layers[1].mlp = Branching()
    refused(model, "Branching")
    assert capfd.readouterr() == ("", "")


def test_a_failed_capture_leaves_the_model_as_it_was():
    model = TINY["llama"]()
    model.model.layers[1].mlp = Branching()
    refused(model, "Branching")
    assert model.config._attn_implementation == "eager"


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, hidden):
        self.calls += 1
        return hidden


def test_a_forward_pass_that_writes_to_a_buffer_is_refused():
    model = TINY["llama"]()
    model.model.layers[0].mlp = Writing()
    refused(model, r"forward pass writes to model\.layers\.0\.mlp\.calls")


class Patching(nn.Module):
    def forward(self, hidden):
        patched = hidden * torch.tensor([0.5])
        patched[..., :2] = 1.0
        return patched


def test_tensors_made_of_numbers_and_written_in_parts_are_captured():
    model = TINY["llama"]()
    model.model.layers[1].mlp = Patching()
    program = capture(model, CONFIG)
    for entry in program.entries.values():
        ids, positions = inputs(entry)
        got = logits_of(entry, program, ids, positions)
        assert relative_error(got, model(input_ids=ids, position_ids=positions).logits) <= 1e-5, entry.name


def test_a_model_in_training_mode_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.1)).train()
    with pytest.raises(UnsupportedModelError, match="LlamaAttention of layer 0: asks for dropout"):
        capture(model, CONFIG)


@pytest.mark.parametrize("window", [1, 2, 5, 63])
def test_a_sliding_window_is_read_off_its_mask(window):
    assert window_of(lambda b, h, q, k: (k <= q) & (k > q - window), 64) == window


def test_masks_that_a_window_cannot_express_are_told_apart():
    assert window_of(lambda b, h, q, k: k <= q, 64) == 0
    assert window_of(lambda b, h, q, k: (k <= q) & (k > q - 64), 64) == 0
    assert window_of(lambda b, h, q, k: k >= 0, 64) is None
    assert window_of(lambda b, h, q, k: (k <= q) & (k // 8 == q // 8), 64) is None
    assert window_of(lambda b, h, q, k: (k <= q) | (k < 4), 64) is None
