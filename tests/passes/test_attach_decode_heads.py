"""The drafter in the program drafts as its module does beside the model, whatever brought the tokens in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, Program, Role
from dspark_compiler.models.drafters.checkpoint import build
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.heads import Calibration, Heads, TargetIdentity
from dspark_compiler.passes.attach_decode_heads import AttachDecodeHeads
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from tests.captured import captured
from tests.models.drafters.tiny import CONFIGS
from tests.models.drafters.torch_memory import ModelTarget, Sampling, TorchMemory, remember
from tests.program_runner import ProgramRunner, knobs
from tests.tiny_models import tiny

CONFIG = CompileConfig(max_seq_len=32, max_batch=2, prefill_widths=(4,), verify_width=4, heads=Path("heads"))
G = 3
PROMPTS = ([3, 14, 15, 92, 65, 35], [89, 79, 32])
DRAFTERS = ("vanilla", "gated", "rnn", "dflash", "medusa", "eagle3")


def make_heads(model, name: str, window: int = 4096, **sizes: int) -> Heads:
    own = model.config.get_text_config()
    config: DrafterConfig = replace(
        CONFIGS[name],
        hidden_size=own.hidden_size,
        vocab_size=own.vocab_size,
        num_target_layers=own.num_hidden_layers,
        target_layer_ids=(-1, 0),
        block_size=G,
        context_window=window,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drafter = build(config)
        for tensor in drafter.state_dict().values():
            centre = 1.0 if tensor.ndim == 1 and bool((tensor == 1).all()) else 0.0
            tensor.copy_(centre + 0.3 * torch.randn(tensor.shape))
    target = TargetIdentity("tiny", own.hidden_size, own.vocab_size, own.num_hidden_layers, None)
    return Heads(drafter.eval().requires_grad_(False), target)


def attached(model, heads: Heads | None, config: CompileConfig = CONFIG) -> Program:
    program, _ = run_passes(default_pipeline(config, heads), captured(model, config))
    return program


class Beside:
    """The same drafter in plain torch, beside the model; one sequence."""

    def __init__(self, model, heads: Heads) -> None:
        self.drafter, self.target = heads.drafter, ModelTarget(model)
        self.memory = TorchMemory(heads.drafter, 1, CONFIG.verify_width)
        self.ids: list[int] = []

    def confirm(self, tokens: list[int]) -> None:
        begin = len(self.ids)
        self.ids += tokens
        remember(self.drafter, self.target, self.memory, torch.tensor([self.ids]), begin, len(self.ids))
        self.memory.confirm(len(tokens))

    def draft(self, anchor: int, uniform: torch.Tensor, temperature: float):
        sample = Sampling(uniform[None], temperature)
        position = torch.tensor([len(self.ids)])
        return self.drafter.draft(torch.tensor([anchor]), position, self.target, self.memory, sample)


def check_drafts(runner: ProgramRunner, besides: list[Beside], temperature: float) -> None:
    uniform = torch.rand(2, G, generator=torch.Generator().manual_seed(1))
    found = runner.draft([7, 8], uniform, temperature)
    for row, beside in enumerate(besides):
        expected = beside.draft(7 + row, uniform[row], temperature)
        start = runner.length[row]
        assert found["input_ids"][row].tolist() == [7 + row, *expected.tokens[0].tolist()]
        assert found["positions"][row].tolist() == [min(start + i, CONFIG.max_seq_len - 1) for i in range(G + 1)]
        assert found["length"][row] == start
        torch.testing.assert_close(found["probs"][row], expected.probs[0], rtol=1e-4, atol=1e-6)
        assert ("confidence" in found) == (expected.confidence is not None)
        if expected.confidence is not None:
            torch.testing.assert_close(found["confidence"][row], expected.confidence[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "llama") for name in DRAFTERS), ("vanilla", "gemma2"), ("eagle3", "gemma2")]
)
def test_drafts_are_the_module_s(name, family):
    model = tiny(family)
    heads = make_heads(model, name)
    runner, besides = ProgramRunner(attached(model, heads)), [Beside(model, heads) for _ in PROMPTS]
    for row, prompt in enumerate(PROMPTS):
        runner.prefill(row, list(prompt))
        besides[row].confirm(list(prompt))
    check_drafts(runner, besides, temperature=1.0)
    blocks = [[7, 1, 2, 3], [8, 4, 5, 6]]
    runner.verify(blocks)
    runner.commit([3, 1])  # what was not accepted must leave no trace
    for beside, block, kept in zip(besides, blocks, (3, 1), strict=True):
        beside.confirm(block[:kept])
    check_drafts(runner, besides, temperature=0.7)
    runner.decode([9, None])
    besides[0].confirm([9])
    check_drafts(runner, besides, temperature=0.0)


@pytest.mark.parametrize("name", ["vanilla", "eagle3"])
def test_a_window_shorter_than_the_text_forgets_the_beginning(name):
    model = tiny("llama")
    whole, short = make_heads(model, name), make_heads(model, name, window=4)
    runner, beside = ProgramRunner(attached(model, short)), Beside(model, short)
    forgetting = [beside, Beside(model, short)]
    for row, prompt in enumerate(PROMPTS):
        runner.prefill(row, list(prompt))
        forgetting[row].confirm(list(prompt))
    check_drafts(runner, forgetting, temperature=1.0)
    places = {ref: spec.shape[2] for ref, spec in runner.program.states.items() if ref.startswith("ring.k")}
    assert set(places.values()) == {4 + CONFIG.verify_width}
    remembering = Beside(model, whole)
    remembering.confirm(list(PROMPTS[0]))
    uniform = torch.full((G,), 0.5)
    assert not torch.equal(remembering.draft(7, uniform, 1.0).probs, beside.draft(7, uniform, 1.0).probs)


def test_embedding_and_head_are_the_target_s_own_weights():
    model = tiny("llama")
    program = attached(model, make_heads(model, "vanilla"))
    refs = {node.meta["ref"] for node in program.entries["draft"].placeholders(Role.PARAM)}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= refs
    vocabularies = [ref for ref, tensor in program.params.items() if tensor.ndim == 2 and tensor.shape[0] == 128]
    assert sorted(vocabularies) == [
        *("heads.markov_head.markov_w1.weight", "heads.markov_head.markov_w2.weight"),
        *("lm_head.weight", "model.embed_tokens.weight"),
    ]


def test_what_the_runtime_has_to_know():
    model = tiny("llama")
    heads = make_heads(model, "rnn")
    calibration = Calibration((1.0, 2.0, 0.5), (0.1,) * 3, (0.01,) * 3, (0.9,) * 3, (0.1, 0.2, -0.3))
    program = attached(model, replace(heads, calibration=calibration))
    assert program.heads is not None
    assert (program.heads.type, program.heads.block_size, program.heads.confidence) == ("dspark", G, True)
    assert program.heads.temperatures == (1.0, 2.0, 0.5)
    assert program.heads.shifts == (0.1, 0.2, -0.3)
    assert [name for name, entry in program.entries.items() if entry.kind is EntryKind.ACCEPT] == [
        "accept_2",
        "accept_4",
    ]


def test_accept_compares_what_was_drafted_with_the_target():
    model = tiny("llama")
    runner = ProgramRunner(attached(model, make_heads(model, "vanilla")))
    runner.prefill(0, list(PROMPTS[0]))
    runner.prefill(1, list(PROMPTS[1]))
    tokens = torch.tensor([[7, 1, 2, 3], [8, 4, 5, 6]])
    logits = runner.verify(tokens.tolist())
    best = logits.argmax(-1)
    tokens[0, 1] = best[0, 0]  # the first draft of the first sequence is right, all others are not
    probs = torch.nn.functional.one_hot(tokens[:, 1:], 128).float()
    inputs = {"tokens": tokens, "logits": logits, "draft_probs": probs, "uniform": torch.full((2, 4), 0.5)}
    inputs |= {"position": torch.tensor(runner.length), "length": torch.tensor(runner.length, dtype=torch.int32)}
    found = runner.run("accept_4", count=torch.tensor([3, 0], dtype=torch.int32), **inputs, **knobs(2, 0.0))
    assert found["accepted"].tolist() == [2, 1]
    assert found["position"].tolist() == found["length"].tolist() == [8, 4]
    assert found["next"].tolist() == [int(best[0, 1]), int(best[1, 0])]


def test_prompt_lookup_needs_no_draft():
    config = replace(CONFIG, heads=NGRAM)
    program = attached(tiny("gpt2"), None, config)
    assert program.heads is not None
    assert (program.heads.type, program.heads.block_size) == ("ngram", 3)
    assert "draft" not in program.entries
    refs = [node.meta["ref"] for node in program.entries["accept_4"].placeholders(Role.INPUT)]
    assert "draft_probs" not in refs
    assert not any(ref.startswith("ring.") for ref in program.states)


def test_no_mark_is_left():
    model = tiny("llama")
    program = attached(model, make_heads(model, "vanilla"))
    targets = {node.target for entry in program.entries.values() for node in entry.graph.graph.nodes}
    assert torch.ops.dspark.layer_output.default not in targets


def test_with_a_pruned_cache_the_rings_keep_their_window():
    model = tiny("llama")
    config = replace(CONFIG, max_seq_len=64, kv_budget=24, verify_width=2, prefill_widths=(2,))
    program = attached(model, make_heads(model, "vanilla"), config)
    assert program.pruning is not None
    assert program.states["k_cache.0"].shape[2] < 64
    assert program.states["ring.k.0"].shape[2] == 64 + 2


def test_an_embedding_of_more_than_ids_is_refused():
    model = tiny("gpt2")
    with pytest.raises(PassError, match="verify_2: the embedding cannot be shared: add depends on positions, too"):
        attached(model, make_heads(model, "vanilla"))


def test_needs_the_cache():
    model = tiny("llama")
    program = captured(model, CONFIG)
    with pytest.raises(PassError, match="run insert_kv_cache first"):
        AttachDecodeHeads(make_heads(model, "vanilla"), 32, 2, 4).apply(program)


def test_a_layer_that_is_not_marked_is_named():
    model = tiny("llama")
    heads = make_heads(model, "vanilla")
    with pytest.raises(PassError, match="what the first layer is given is not marked"):
        run_passes(default_pipeline(CONFIG, heads), captured(model, replace(CONFIG, heads=None)))
